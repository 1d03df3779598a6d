"""Devices, threads and precision: the manifest's word, or a plain reason."""

import pytest
import torch

from smalltalk_fed.config.run import ComputeSection
from smalltalk_fed.errors import UserError
from smalltalk_fed.train.device import (
    autocast,
    choose_device,
    may_compile,
    train_dtype,
    use_threads,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_device_that_is_not_there_is_the_persons_mistake():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="'abacus' is unknown"):
        choose_device("abacus")
    with pytest.raises(UserError, match="not on this machine"):
        choose_device("cuda:99")


def test_auto_is_fp32_on_a_cpu_and_what_is_asked_for_is_obeyed():
    assert train_dtype(ComputeSection(), CPU) == "float32"
    assert train_dtype(ComputeSection(train_dtype="bfloat16"), CPU) == "bfloat16"
    assert train_dtype(ComputeSection(train_dtype="float32"), CUDA) == "float32"


def test_compiling_is_for_gpus():
    assert not may_compile(ComputeSection(), CPU)
    assert may_compile(ComputeSection(), CUDA)
    assert not may_compile(ComputeSection(compile="never"), CUDA)


def test_autocast_makes_bf16_products_and_fp32_leaves_them():
    x = torch.ones(2, 2)
    with autocast("bfloat16", CPU):
        assert (x @ x).dtype == torch.bfloat16
    with autocast("float32", CPU):
        assert (x @ x).dtype == torch.float32


def test_threads_follow_the_manifest_and_zero_leaves_them():
    before = torch.get_num_threads()
    try:
        use_threads(ComputeSection(threads=2))
        assert torch.get_num_threads() == 2
        use_threads(ComputeSection(threads=0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
