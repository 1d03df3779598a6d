"""The report as a table for people: what was measured, for one policy or two side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from smalltalk_fed.simulation.report import Report


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _ideal(report: Report) -> str:
    if report.ideal_days is None:
        return "not reached"
    return (
        f"{report.ideal_days:.1f} days (run / ideal {report.virtual_days / report.ideal_days:.2f})"
    )


def _liars(report: Report) -> str:
    audits = report.audits
    if not audits.liars:
        return "none lied"
    if not audits.liars_caught:
        return f"none of {audits.liars}"
    text = f"{audits.liars_caught} of {audits.liars}"
    if audits.hours_until_caught is not None:
        text += f", after {audits.hours_until_caught:.1f} h and {audits.lies_until_caught:.1f} lies"
    return f"{text}; honest nodes quarantined: {audits.honest_quarantined}"


_ROWS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("finished", lambda r: "yes" if r.finished else f"no: {r.phase}"),
    ("run time", lambda r: f"{'' if r.finished else 'over '}{r.virtual_days:.1f} days"),
    ("ideal run time", _ideal),
    ("machine-hours on that worked", lambda r: f"{r.busy_share:.2%}"),
    ("work computed that counts", lambda r: f"{r.useful_share:.1%}"),
    ("work repeated", lambda r: f"{r.repeated_work:.1%}"),
    (
        "messages a second, mean / peak",
        lambda r: f"{r.messages_per_s_mean:.2f} / {r.messages_per_s_peak:.1f}",
    ),
    (
        "bytes a second, mean / peak",
        lambda r: f"{size(r.bytes_per_s_mean)} / {size(r.bytes_per_s_peak)}",
    ),
    ("of that, blobs up / down", lambda r: f"{size(r.blob_up_bytes)} / {size(r.blob_down_bytes)}"),
    ("journal", lambda r: f"{size(r.journal_bytes)}, {r.journal_events:,} events"),
    (
        "lease: last word, mean / p99",
        lambda r: f"{r.lease_age_mean_s:.0f} / {r.lease_age_p99_s:.0f} s",
    ),
    ("stale leases", lambda r: f"{r.stale_leases:.2%}"),
    ("work on audits, opinions", lambda r: f"{r.audit_share:.2%}, {r.audits.audits_done:,}"),
    ("liars caught", _liars),
    (
        "results waived / done again",
        lambda r: f"{r.audits.results_waived:,} / {r.audits.results_done_again:,}",
    ),
    ("coordinator restarts", lambda r: f"{r.coordinator_restarts:,}"),
    ("node processes started", lambda r: f"{r.node_starts:,}"),
    ("broken rules", lambda r: "; ".join(r.violations) or "none"),
    ("trace digest", lambda r: r.trace_digest),
    ("took", lambda r: f"{r.wall_s:.0f} s ({r.cpu_s:.0f} s of a core), {r.events:,} events"),
)


def make_table(reports: Sequence[Report]) -> Table:
    """One column a report."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for report in reports:
        table.add_column(f"{report.policy} policies", no_wrap=True)
    for title, cell in _ROWS:
        table.add_row(title, *(cell(report) for report in reports))
    return table
