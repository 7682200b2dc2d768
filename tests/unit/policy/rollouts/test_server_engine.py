"""Stock vLLM servers as one engine: which are asked for what, and what becomes of prompts when one of them
fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policy.rollouts.build import adapter_folder
from policy.rollouts.protocol import Sampling, seed_of
from policy.rollouts.servers import fleet as server_fleet
from policy.rollouts.servers.client import Server
from policy.rollouts.servers.engine import ServerEngine
from policy.rollouts.servers.fleet import Fleet
from policy.rollouts.servers.start import Wanted
from rlhf.core.errors import EngineError, ModelError
from rlhf.models.chat import Chat

BASE = "models/small"
SAMPLING = Sampling(max_new_tokens=8, temperature=1.0, stop_ids=(2,))
PROMPTS = [[5, number, 7] for number in range(12)]
TOKEN = "a-secret"


def policy(weights: bytes = b"one", rank: int = 4) -> Any:
    """As much of a model as the engine sees: it saves an adapter."""

    def save(folder: str, **_: Any) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "adapter_model.safetensors").write_bytes(weights)
        (Path(folder) / "adapter_config.json").write_text(json.dumps({"r": rank}))

    return SimpleNamespace(save_pretrained=save, named_parameters=dict[str, Any]().items)


Start = Callable[..., Any]


@pytest.fixture
def start(fake_vllm: Any) -> Iterator[Start]:
    """Starts servers, and stops them after the test."""
    running = []

    def start(**settings: Any) -> Any:
        running.append(fake_vllm.FakeVLLM(BASE, **settings))
        return running[-1]

    yield start
    for server in running:
        server.kill()


@pytest.fixture
def engine_of(
    tiny_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ServerEngine]:
    monkeypatch.setattr(server_fleet, "PAUSES", (0.0, 0.02, 0.05))

    def make(
        *servers: Any,
        token: str | None = None,
        timeout: float = 30,
        sampling: Sampling = SAMPLING,
        length: int = 64,
    ) -> ServerEngine:
        wanted = Wanted(BASE, f"/data/{BASE}", 4, length, "MY_TOKEN", sampling)
        clients = [Server(server.url, token=token, timeout=timeout) for server in servers]
        return ServerEngine(Fleet(clients, wanted), tiny_chat, folder=tmp_path / "adapters", seed=3)

    return make


def synced(engine: ServerEngine) -> ServerEngine:
    engine.sync(policy())
    return engine


def ids_of(groups: Any) -> list[list[tuple[int, ...]]]:
    return [[rollout.completion_ids for rollout in group] for group in groups]


def expected(fake_vllm: Any, folder: Path, prompts: list[list[int]], samples: int, seed: int) -> Any:
    """What the fake must answer, from the seed that each prompt is to have."""
    shared = {"n": samples, "max_tokens": 8, "stop_token_ids": [2]}
    return [
        [
            tuple(ids)
            for ids, _ in fake_vllm.by_hash(
                folder, {**shared, "prompt": ids_, "seed": seed_of(3, seed, place)}
            )
        ]
        for place, ids_ in enumerate(prompts)
    ]


def test_a_request_says_everything_that_shapes_the_distribution(start: Start, engine_of: Any) -> None:
    server = start()
    engine = synced(engine_of(server))
    engine.generate([[5, 6]], samples=3, seed=1)
    assert server.completions == [
        {
            "model": engine.adapter,
            "prompt": [5, 6],
            "n": 3,
            "seed": seed_of(3, 1, 0),
            "max_tokens": 8,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": [2],
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
    ]


def test_answers_are_records_in_the_order_of_their_prompts(
    start: Start, engine_of: Any, fake_vllm: Any, tiny_chat: Chat
) -> None:
    server = start()
    engine = synced(engine_of(server))
    groups = engine.generate(PROMPTS, samples=4, seed=1)
    folder = server.adapters[engine.adapter]
    assert ids_of(groups) == expected(fake_vllm, folder, PROMPTS, 4, seed=1)
    settings = fake_vllm.by_hash(folder, server.completions[0])
    place = PROMPTS.index(server.completions[0]["prompt"])
    assert [rollout.logprobs for rollout in groups[place]] == [tuple(logprobs) for _, logprobs in settings]
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            assert rollout.prompt_ids == tuple(prompt)
            assert rollout.finished == (rollout.completion_ids[-1] == 2)
            assert rollout.text == tiny_chat.decode(rollout.completion_ids)
    assert {rollout.finished for group in groups for rollout in group} == {True, False}


def test_it_does_not_matter_which_server_answers(start: Start, engine_of: Any) -> None:
    alone = ids_of(synced(engine_of(start())).generate(PROMPTS, samples=2, seed=1))
    servers = [start(), start(), start()]
    engine = synced(engine_of(*servers))
    assert ids_of(engine.generate(PROMPTS, samples=2, seed=1)) == alone
    assert ids_of(engine.generate(PROMPTS, samples=2, seed=2)) != alone
    engine.sync(policy(b"two"))
    assert ids_of(engine.generate(PROMPTS, samples=2, seed=1)) != alone


def test_prompts_go_where_there_is_least_to_do(start: Start, engine_of: Any) -> None:
    gate = threading.Barrier(len(PROMPTS), timeout=20)
    servers = [start(disturb=lambda _: (gate.wait(), None)[1]) for _ in range(3)]
    synced(engine_of(*servers)).generate(PROMPTS, samples=1, seed=1)
    assert [len(server.completions) for server in servers] == [4, 4, 4]


def test_each_process_begins_with_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = [Server(f"http://127.0.0.1:{port}", token=None, timeout=1) for port in (1, 2, 3)]
    wanted = Wanted(BASE, BASE, 4, 64, "MY_TOKEN", SAMPLING)
    first = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        fleet = Fleet(servers, wanted)
        assert sorted(server.url for server in fleet.servers) == sorted(server.url for server in servers)
        first.append(fleet.servers[0].url[-1])
    assert first == ["1", "2", "3", "1"]


def test_an_adapter_is_written_once_and_loaded_everywhere(
    start: Start, engine_of: Any, tmp_path: Path
) -> None:
    servers = [start(), start()]
    engine = synced(engine_of(*servers))
    first = engine.adapter
    engine.sync(policy(b"two"))
    assert engine.adapter != first
    for server in servers:
        assert server.adapters == {engine.adapter: tmp_path / "adapters" / str(engine.adapter)}
    assert [folder.name for folder in (tmp_path / "adapters").iterdir()] == [engine.adapter]
    asked = [len(server.asked) for server in servers]
    engine.sync(policy(b"two"))  # nothing changed, and nothing is asked
    assert [len(server.asked) for server in servers] == asked
    engine.sync(policy(b"one"))
    assert engine.adapter == first  # a name is its weights


def test_a_server_killed_at_work_loses_no_answer_and_comes_back(
    start: Start, engine_of: Any, fake_vllm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [start(), start()]
    engine = synced(engine_of(*servers))
    calm = ids_of(engine.generate(PROMPTS, samples=2, seed=1))
    assert engine.figures() == {"engine/servers": 2.0, "engine/retried_prompts": 0.0}

    reached = threading.Barrier(len(PROMPTS) + 1, timeout=20)
    killed = threading.Event()

    def hold(_: Any) -> None:
        if not killed.is_set():
            reached.wait()
            killed.wait()
            time.sleep(0.1)

    for server in servers:
        server.disturb = hold
    requested = engine.request(PROMPTS, samples=2, seed=1)
    reached.wait()  # every prompt is on a server now, six on each
    servers[1].kill()
    killed.set()
    assert ids_of(engine.collect(requested)) == calm
    assert engine.figures() == {"engine/servers": 1.0, "engine/retried_prompts": 6.0}
    printed = [line for line in capsys.readouterr().out.splitlines() if "lost" in line]
    assert len(printed) == 1 and servers[1].url in printed[0] and "In use: 1 of 2" in printed[0]

    engine.sync(policy(b"two"))  # still gone: printed once
    assert capsys.readouterr().out == ""
    servers[1].start()
    engine.sync(policy(b"three"))
    assert f"Rollout server {servers[1].url} is back" in capsys.readouterr().out
    assert list(servers[1].adapters) == [engine.adapter]
    assert ids_of(engine.generate(PROMPTS, samples=2, seed=1)) == expected(
        fake_vllm, servers[1].adapters[engine.adapter], PROMPTS, 2, seed=1
    )
    assert engine.figures()["engine/servers"] == 2.0


def test_a_server_that_was_started_again_has_no_adapter_until_the_next_sync(
    start: Start, engine_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [start(), start()]
    engine = synced(engine_of(*servers))
    servers[0].kill()
    servers[0].start()
    groups = engine.generate(PROMPTS, samples=2, seed=1)
    assert all(len(group) == 2 for group in groups)
    assert "restarted" in capsys.readouterr().out
    engine.sync(policy())  # the same weights: the other server keeps them, this one gets them
    assert list(servers[0].adapters) == [engine.adapter]
    assert engine.figures()["engine/servers"] == 2.0


@pytest.mark.parametrize(
    "trouble", ["drop", (500, {"error": {"message": "oops"}}), (503, "busy"), (429, "slow down")]
)
def test_a_passing_failure_is_tried_again_on_the_same_server(
    start: Start, engine_of: Any, fake_vllm: Any, trouble: Any
) -> None:
    times = iter([trouble, trouble])
    server = start(disturb=lambda _: next(times, None))
    engine = synced(engine_of(server))
    groups = engine.generate([[5, 6]], samples=2, seed=1)
    assert ids_of(groups) == expected(fake_vllm, server.adapters[engine.adapter], [[5, 6]], 2, seed=1)
    assert engine.figures() == {"engine/servers": 1.0, "engine/retried_prompts": 2.0}


def test_a_server_that_shuts_down_ends_answers_early_and_another_finishes_them(
    start: Start, engine_of: Any, fake_vllm: Any
) -> None:
    def abort(body: Any) -> Any:
        settings = fake_vllm.completion(body, [([100], [-1.0])] * body["n"])
        settings["choices"][0]["finish_reason"] = "abort"
        return 200, settings

    servers = [start(disturb=abort), start()]
    engine = synced(engine_of(*servers))
    groups = engine.generate(PROMPTS, samples=2, seed=1)
    assert ids_of(groups) == expected(fake_vllm, servers[1].adapters[engine.adapter], PROMPTS, 2, seed=1)


def test_a_server_that_never_answers_is_given_up(
    start: Start, engine_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    servers = [start(disturb=lambda _: (release.wait(20), None)[1]), start()]
    engine = synced(engine_of(*servers, timeout=0.3))
    assert len(engine.generate(PROMPTS, samples=2, seed=1)) == len(PROMPTS)
    release.set()
    assert "0.3 s" in capsys.readouterr().out
    assert engine.figures()["engine/servers"] == 1.0


def test_no_server_left(start: Start, engine_of: Any) -> None:
    servers = [start(), start()]
    engine = synced(engine_of(*servers))
    for server in servers:
        server.kill()
    with pytest.raises(EngineError) as caught:
        engine.generate(PROMPTS, samples=2, seed=1)
    assert all(server.url in caught.value.found for server in servers)
    assert "--enable-lora" in caught.value.fix and "--resume" in caught.value.fix
    with pytest.raises(EngineError, match=servers[0].url):
        engine.sync(policy(b"two"))


def test_none_reached_at_the_start(start: Start, engine_of: Any) -> None:
    server = start()
    server.kill()
    with pytest.raises(EngineError, match=server.url):
        engine_of(server)


@pytest.mark.parametrize("change", [{"token": "another"}, {"base": "models/other"}, {"max_model_len": 8}])
def test_a_lost_server_that_comes_back_unusable_does_not_end_the_run(
    start: Start, engine_of: Any, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    servers = [start(token=TOKEN), start(token=TOKEN)]
    engine = synced(engine_of(*servers, token=TOKEN))
    before = {name: getattr(servers[1], name) for name in change}
    servers[1].kill()
    engine.generate(PROMPTS, samples=2, seed=1)
    vars(servers[1]).update(change)
    servers[1].start()
    engine.sync(policy(b"two"))
    assert [server.url for server in engine.fleet.alive] == [servers[0].url]
    assert len(engine.generate(PROMPTS, samples=2, seed=2)) == len(PROMPTS)

    vars(servers[1]).update(before)
    engine.sync(policy(b"three"))
    assert len(engine.fleet.alive) == 2 and f"{servers[1].url} is back" in capsys.readouterr().out


def test_one_of_two_not_reached_at_the_start_joins_later(
    start: Start, engine_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [start(), start()]
    servers[1].kill()
    engine = engine_of(*servers)
    assert "cannot be reached" in capsys.readouterr().out
    engine.sync(policy())
    servers[1].start()
    engine.sync(policy(b"two"))
    assert "is back" in capsys.readouterr().out and list(servers[1].adapters) == [engine.adapter]


@pytest.mark.parametrize("token", [None, "another"])
def test_a_wrong_token(start: Start, engine_of: Any, token: str | None) -> None:
    with pytest.raises(ModelError) as caught:
        engine_of(start(token=TOKEN), token=token)
    assert "401: Unauthorized" in caught.value.found
    assert "export MY_TOKEN=" in caught.value.fix


def test_the_right_token_stays_out_of_every_message(
    start: Start, engine_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start(token=TOKEN)
    engine = synced(engine_of(server, token=TOKEN))
    assert len(engine.generate(PROMPTS, samples=2, seed=1)) == len(PROMPTS)
    server.token = "another"
    with pytest.raises(EngineError, match="MY_TOKEN") as caught:
        engine.generate(PROMPTS, samples=2, seed=1)
    assert TOKEN not in str(caught.value) + capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message", "fix"),
    [
        ({"max_model_len": 63}, "63", "--max-model-len 64"),
        ({"updating": False}, "404", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"max_rank": 2}, "LoRA rank 4 is greater than max_lora_rank 2", "--max-lora-rank 8"),
    ],
)
def test_a_server_started_in_another_way(
    start: Start, engine_of: Any, settings: Any, message: str, fix: str
) -> None:
    with pytest.raises(ModelError) as caught:
        synced(engine_of(start(), start(**settings)))
    assert message in caught.value.found and fix in f"{caught.value.allowed} {caught.value.fix}"


def test_a_server_with_another_model(fake_vllm: Any, engine_of: Any) -> None:
    other = fake_vllm.FakeVLLM("models/other")
    with pytest.raises(ModelError, match="models/other.* models/small"):
        engine_of(other)
    other.kill()
    elsewhere = fake_vllm.FakeVLLM("/mnt/disk/Small")  # the same name in another place
    synced(engine_of(elsewhere))
    elsewhere.kill()


def test_another_program_at_the_address(start: Start, engine_of: Any) -> None:
    server = start()
    server.handle = lambda handler, body: (
        handler.send_response(200),
        handler.send_header("Content-Length", "2"),
        handler.end_headers(),
        handler.wfile.write(b"hi"),
    )
    with pytest.raises(ModelError, match="'hi'"):
        engine_of(server)


def test_a_folder_that_the_server_does_not_see(
    start: Start, engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    load = server._load
    server._load = lambda name, folder: load(name, Path("/elsewhere") / name)
    with pytest.raises(ModelError, match=server.url) as caught:
        synced(engine_of(server))
    assert "rollouts.adapter_folder=" in caught.value.fix


def test_logprobs_from_before_the_temperature(start: Start, engine_of: Any) -> None:
    cool = Sampling(8, 0.5, (2,))
    synced(engine_of(start(raw_logprobs=True)))  # at temperature 1 they are the same
    synced(engine_of(start(), sampling=cool))
    with pytest.raises(ModelError, match="--logprobs-mode processed_logprobs"):
        engine_of(start(raw_logprobs=True), sampling=cool)


def test_a_prompt_that_a_server_refuses_ends_the_run(start: Start, engine_of: Any) -> None:
    engine = synced(engine_of(start(), start()))
    with pytest.raises(EngineError, match="400: This model's maximum context length is 256"):
        engine.generate([*PROMPTS, list(range(250))], samples=2, seed=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda settings: settings["choices"].clear(), "0 of 2"),
        (lambda settings: settings["choices"].pop(), "1 of 2"),
        (lambda settings: settings["choices"][0].update(token_ids=None), "token ids"),
        (lambda settings: settings["choices"][0].update(logprobs=None), "log-probabilities"),
        (
            lambda settings: settings["choices"][0].update(token_ids=[], logprobs={"token_logprobs": []}),
            "without a token",
        ),
        (
            lambda settings: settings["choices"][0]["logprobs"]["token_logprobs"].pop(),
            "log-probabilities for",
        ),
        (
            lambda settings: settings["choices"][0].update(
                finish_reason="length", token_ids=[5], logprobs={"token_logprobs": [-1]}
            ),
            "1 tokens",
        ),
        (lambda settings: settings.update(model="the-base"), "the-base"),
    ],
)
def test_answers_that_cannot_be_used(
    start: Start, engine_of: Any, fake_vllm: Any, spoil: Any, message: str
) -> None:
    def spoilt(body: Any) -> Any:
        settings = fake_vllm.completion(body, fake_vllm.by_hash(None, body))
        spoil(settings)
        return 200, settings

    engine = synced(engine_of(start(disturb=spoilt)))
    with pytest.raises(EngineError, match=message):
        engine.generate([[5, 6]], samples=2, seed=1)


def test_choices_are_put_in_order(start: Start, engine_of: Any, fake_vllm: Any) -> None:
    def shuffled(body: Any) -> Any:
        settings = fake_vllm.completion(body, fake_vllm.by_hash(server.adapters[body["model"]], body))
        settings["choices"].reverse()
        return 200, settings

    server = start(disturb=shuffled)
    engine = synced(engine_of(server))
    groups = engine.generate([[5, 6]], samples=4, seed=1)
    assert ids_of(groups) == expected(fake_vllm, server.adapters[engine.adapter], [[5, 6]], 4, seed=1)


def test_before_the_first_sync(start: Start, engine_of: Any) -> None:
    with pytest.raises(EngineError, match="sync"):
        engine_of(start()).generate(PROMPTS, samples=2, seed=1)


def test_runs_that_share_a_folder_have_folders_of_their_own_in_it(tmp_path: Path) -> None:
    first, two = (adapter_folder(tmp_path / name / "policy", "/shared") for name in ("one", "two"))
    assert first.parent == two.parent == Path("/shared")
    assert first.name.startswith("policy-") and first != two
    assert adapter_folder(tmp_path / "run", None) == (tmp_path / "run" / "adapters").resolve()
