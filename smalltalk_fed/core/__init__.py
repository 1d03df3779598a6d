"""The method's distributed side as pure state machines: coordinator and node session.

The caller's duties (as in etcd-io/raft):

1. Call `Coordinator.handle(message, conversation, now)` for what peers say and
   `Coordinator.tick(now)` no later than `Coordinator.deadline()`.
2. Commit `Ready.events` durably, in order, before sending any of `Ready.replies`. If the
   commit fails, stop the process: memory is ahead of the disk.
3. Run each of `Ready.jobs` anywhere and bring the result back as a message.
4. After a restart, `Coordinator.replay(manifest, events, now)` and then `start(now)`.

Rules: no clock, no I/O, no randomness, no carrier's types. An exception out of `handle`
means that nothing changed but what was noticed of the sender (`Coordinator.noticed`).
"""
