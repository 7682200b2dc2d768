from __future__ import annotations

import pytest
import torch

from rlhf.core.errors import ConfigError
from rlhf.distributed import processes


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the process group exists: NCCL would hang, or two processes share one GPU."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError) as caught:
        processes.init()
    assert caught.value.fix == "accelerate launch --num_processes 2"
