from __future__ import annotations

import pytest

from rlhf.core.errors import ConfigError
from rlhf.plan.gpus import GIB, GPUS, parse_gpus


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "name"),
    [
        ("8xH100-80GB", 1, 8, "H100-80GB"),
        ("4x8xH200", 4, 8, "H200-141GB"),
        ("h100", 1, 1, "H100-80GB"),
        ("2 x 24GB", 1, 2, "24GB"),
        ("1xA100", 1, 1, "A100-40GB"),
        ("2x4xRTX4090", 2, 4, "RTX4090-24GB"),
        ("RTX4090-24GB", 1, 1, "RTX4090-24GB"),
    ],
)
def test_counts_and_names_are_parsed(text: str, nodes: int, per_node: int, name: str) -> None:
    cluster = parse_gpus(text)
    assert (cluster.nodes, cluster.per_node, cluster.gpu.name) == (nodes, per_node, name)
    assert cluster.count == nodes * per_node


def test_a_plain_size_is_in_decimal_gigabytes_and_has_no_speed() -> None:
    assert parse_gpus("1x24GB").gpu.memory == 24 * 10**9
    assert parse_gpus("1x24GiB").gpu.memory == 24 * GIB
    assert parse_gpus("1x24GB").gpu.tflops is None


def test_a_price_overrides_the_table() -> None:
    assert parse_gpus("1xH100").gpu.price == GPUS["H100-80GB"].price
    assert parse_gpus("1xH100", price=9.5).gpu.price == 9.5


@pytest.mark.parametrize(
    ("text", "result", "expected"),
    [
        ("1xRTX4O90", "RTX4O90", "RTX4090-24GB"),
        ("8xH10O-80GB", "'H100-80GB'", "B200-180GB"),
        ("1x0GB", "0GB", "from 1GB"),
        ("0xH100", "count of 0", "1xH100"),
        ("32xH100", "32 GPUs", "--gpus 4x8xH100-80GB"),
        ("2x2x2xH100", "2x2x2xH100", "NODESxCOUNTxGPU"),
        ("-1xH100", "-1xH100", "NODESxCOUNTxGPU"),
        ("", "--gpus", "NODESxCOUNTxGPU"),
    ],
)
def test_an_impossible_value_is_refused(text: str, result: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_gpus(text)
    assert result in error.value.found
    assert expected in f"{error.value.allowed} {error.value.fix}"


def test_links_between_machines_are_slower() -> None:
    assert parse_gpus("4x8xH100").link == 50
    assert parse_gpus("8xH100").link == 450
    assert parse_gpus("4x8xL40S").link == 25
