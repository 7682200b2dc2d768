"""The reward server and rollout servers under 64 clients with injected faults: all scores right, none lost.

    python tests/campaigns/servers.py --seconds 600 --output runs/servers

Reward server: `rlhf serve-reward` with a tiny model behind a proxy that makes a part of the requests fail
(status 500 and 503, an answer that comes too late, a connection cut before or within the answer, a page that
is not JSON). 64 threads, each the client of a policy run, ask for the rewards of random conversations and
compare them with those of requests without faults. One request in 100 has a wrong token.

Rollout servers: 64 prompts at a time on three servers that answer as vLLM does (`tests/fake_vllm.py`), with
the same kinds of faults, and with a server that is killed or restarted from time to time or rejects the
token. Every update has another adapter. All answers are compared with what that adapter answers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import fake_vllm

from policy.rewards.server import ServerReward
from policy.rollouts.protocol import Sampling, seed_of
from policy.rollouts.servers.client import Server
from policy.rollouts.servers.engine import ServerEngine
from policy.rollouts.servers.fleet import Fleet
from policy.rollouts.servers.start import Wanted
from rlhf.core.errors import ConfigError, EngineError, RewardError
from rlhf.core.records import Message, Prompt, Rollout
from tests.campaigns.proxy import FaultyProxy
from tests.campaigns.running import prepare, start

CLIENTS = 64
TOKEN, TOKEN_ENV, WRONG_ENV = "a-token-of-the-campaign", "CAMPAIGN_TOKEN", "CAMPAIGN_WRONG_TOKEN"
RATES = {"500": 0.02, "503": 0.01, "slow": 0.005, "cut before": 0.02, "cut within": 0.02, "not JSON": 0.01}
WRONG_TOKENS = 0.01
CLOSE = 1e-4
"""Scores of one conversation in two batches differ by rounding."""

Scored = tuple[Prompt, Rollout, float]
"""A prompt, an answer and its reward."""


def conversations(count: int, seed: int = 0) -> list[tuple[Prompt, Rollout]]:
    """Prompts and answers of random words and lengths."""
    draw = random.Random(seed)
    words = ["red", "green", "river", "why", "stone", "no", "yes", "seven", "cloud", "run", "slow", "eat"]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 40)))

    return [
        (Prompt((Message("user", f"{number} {text()}"),)), Rollout((1,), (5,), (), True, text()))
        for number in range(count)
    ]


def ask_for_rewards(
    port: int, pool: Sequence[Scored], seconds: float, *, timeout: float, clients: int = CLIENTS
) -> Counter[str]:
    """Ask from many threads for the rewards of random parts of the pool; count what came back."""
    os.environ |= {TOKEN_ENV: TOKEN, WRONG_ENV: "a-wrong-token"}
    counts, lock, end = Counter[str](), threading.Lock(), time.monotonic() + seconds

    def client(seed: int) -> None:
        draw, url = random.Random(seed), f"http://127.0.0.1:{port}"
        right = ServerReward(url, token_env=TOKEN_ENV, timeout=timeout)
        wrong = ServerReward(url, token_env=WRONG_ENV, timeout=timeout)
        while time.monotonic() < end:
            asked = draw.choices(pool, k=draw.randint(1, 16))
            is_wrong = draw.random() < WRONG_TOKENS
            outcome = compare_rewards(wrong if is_wrong else right, asked, is_wrong=is_wrong)
            with lock:
                counts.update(outcome)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def compare_rewards(server: ServerReward, asked: Sequence[Scored], *, is_wrong: bool) -> dict[str, int]:
    """Ask once and count."""
    try:
        rewards = server.of([item[0] for item in asked], [item[1] for item in asked])
    except ConfigError:
        return {"requests": 1, "wrong token refused" if is_wrong else "right token refused": 1}
    except RewardError:
        return {"requests": 1, "refused after all retries": 1}
    if is_wrong:
        return {"requests": 1, "wrong token accepted": 1}
    missing = len(asked) - sum(isinstance(reward, float) for reward in rewards) + len(asked) - len(rewards)
    wrong = sum(
        isinstance(reward, float) and abs(reward - expected) > CLOSE
        for (_, _, expected), reward in zip(asked, rewards, strict=False)
    )
    return {"requests": 1, "scores": len(rewards), "wrong scores": wrong, "lost scores": missing}


def reward_server(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """`rlhf serve-reward` in a process of its own, and its port."""
    log = folder / "serve-reward.log"
    words = ["serve-reward", str(folder / "reward" / "final"), "--port", "0", "--token-env", TOKEN_ENV]
    process = start(
        [sys.executable, "-u", "-m", "rlhf", *words], log, **{TOKEN_ENV: TOKEN, "PYTHONUNBUFFERED": "1"}
    )
    while not (match := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
        if process.poll() is not None:
            raise RuntimeError(f"serve-reward ended; see {log}")
        time.sleep(0.2)
    return process, int(match[1])


def reward_campaign(folder: Path, seconds: float, timeout: float) -> dict[str, Any]:
    """The reward server under 64 clients."""
    process, port = reward_server(folder)
    try:
        os.environ[TOKEN_ENV] = TOKEN
        direct = ServerReward(f"http://127.0.0.1:{port}", token_env=TOKEN_ENV, timeout=120)

        def reward(prompt: Prompt, rollout: Rollout) -> float:
            (score,) = direct.of([prompt], [rollout])
            assert isinstance(score, float), score
            return score

        pool = [(prompt, rollout, reward(prompt, rollout)) for prompt, rollout in conversations(200)]
        proxy = FaultyProxy(port, RATES, slow=1.5 * timeout)
        counts = ask_for_rewards(proxy.port, pool, seconds, timeout=timeout)
        again = max(abs(reward(prompt, rollout) - before) for prompt, rollout, before in pool)
        proxy.close()
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    return {
        **counts,
        "faults": {name or "none": count for name, count in proxy.counts.items()},
        "different scores in pool": len({round(score, 3) for _, _, score in pool}),
        "largest difference afterwards": again,
        "exit code": code,
    }


class Faults:
    """What the rollout servers do wrong."""

    def __init__(self, slow: float, seed: int = 0) -> None:
        self.draw, self.slow, self.counts = random.Random(seed), slow, Counter[str]()

    def __call__(self, request: Mapping[str, Any]) -> Any:
        """In place of an answer, or None."""
        drawn = self.draw.random()
        for fault, rate in {"500": 0.02, "429": 0.02, "cut": 0.02, "abort": 0.01, "slow": 0.0005}.items():
            if drawn < rate:
                self.counts[fault] += 1
                return self._answer(fault, request)
            drawn -= rate
        return None

    def _answer(self, fault: str, request: Mapping[str, Any]) -> Any:
        if fault == "slow":
            time.sleep(self.slow)
            return fake_vllm.DROP
        if fault == "cut":
            return fake_vllm.DROP
        if fault == "abort":
            aborted = {
                "index": 0,
                "finish_reason": "abort",
                "token_ids": [7],
                "logprobs": {"token_logprobs": [-1]},
            }
            choices = [{**aborted, "index": index} for index in range(request["n"])]
            return 200, {"model": request["model"], "choices": choices}
        return fake_vllm.error(int(fault), "injected")


def policy_of(number: int) -> Any:
    """As much of a model as the engine needs: it saves an adapter, another one for each number."""

    def save(folder: str, **_: Any) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "adapter_model.safetensors").write_bytes(f"weights {number}".encode())
        (Path(folder) / "adapter_config.json").write_text(json.dumps({"r": 4}))

    return SimpleNamespace(save_pretrained=save, named_parameters=dict[str, Any]().items)


class Breaker:
    """Kills, restarts or locks out one of the servers; what was broken before works again."""

    def __init__(self, servers: Sequence[fake_vllm.FakeVLLM], seed: int = 0) -> None:
        self.servers, self.draw, self.counts = servers, random.Random(seed), Counter[str]()
        self._down: fake_vllm.FakeVLLM | None = None
        self._lock = threading.Lock()

    def later(self) -> threading.Timer:
        """Break one within a moment, in another thread."""
        timer = threading.Timer(self.draw.uniform(0, 0.2), self.break_one)
        timer.start()
        return timer

    def repair(self) -> None:
        """Make all servers work."""
        with self._lock:
            self._repair()

    def _repair(self) -> None:
        for server in self.servers:
            server.token = TOKEN
        if self._down is not None:
            self._down.start()
        self._down = None

    def break_one(self) -> None:
        """Break one now."""
        with self._lock:
            self._repair()
            server = self.draw.choice(self.servers)
            fault = self.draw.choice(["none", "killed", "restarted", "token rejected"])
            self.counts[fault] += 1
            self._down = server if fault == "killed" else None
            if fault == "token rejected":
                server.token = "another-token"
            elif fault != "none":
                server.kill()
                if fault == "restarted":
                    server.start()


def rollout_campaign(
    folder: Path, seconds: float, chat: Any, *, timeout: float, prompts: int = CLIENTS
) -> dict[str, Any]:
    """Updates of 64 prompts on three servers."""
    faults = Faults(slow=1.5 * timeout)
    servers = [fake_vllm.FakeVLLM("models/small", token=TOKEN, disturb=faults) for _ in range(3)]
    wanted = Wanted("models/small", "/data/models/small", 4, 64, TOKEN_ENV, Sampling(8, 1.0, (2,)))
    breaker, counts = Breaker(servers), Counter[str]()
    end, engine, update = time.monotonic() + seconds, None, 0
    broken: threading.Timer | None = None
    while time.monotonic() < end:
        update += 1
        try:
            if is_new := engine is None:
                clients = [Server(server.url, token=TOKEN, timeout=timeout) for server in servers]
                engine = ServerEngine(Fleet(clients, wanted), chat, folder=folder / "adapters", seed=3)
            broken = None if is_new else breaker.later()  # at the start of a run a wrong token is refused
            engine.sync(policy_of(update))
            broken = broken or breaker.later()
            requested = [[5, update % 90, number] for number in range(prompts)]
            groups = engine.generate(requested, samples=2, seed=update)
            broken.join()
        except EngineError:
            counts["updates without a server left"] += 1
            engine = None
            if broken is not None:
                broken.join()
            breaker.repair()  # as a person would before resuming
            continue
        counts["updates"] += 1
        counts["retried prompts"] += int(engine.figures()["engine/retried_prompts"])
        counts.update(compare_answers(groups, requested, update))
    for server in servers:
        server.kill()
    return {**counts, "faults": dict(faults.counts), "servers": dict(breaker.counts)}


def compare_answers(groups: Any, prompts: Sequence[Sequence[int]], update: int) -> dict[str, int]:
    """Count answers that are missing or are not those of this update's adapter."""
    wrong = lost = 0
    for place, prompt in enumerate(prompts):
        request = {
            "n": 2,
            "max_tokens": 8,
            "stop_token_ids": [2],
            "prompt": list(prompt),
            "seed": seed_of(3, update, place),
        }
        expected = fake_vllm.of_weights(f"weights {update}".encode().hex(), request)
        answers = [list(rollout.completion_ids) for rollout in groups[place]]
        lost += len(expected) - len(answers)
        wrong += sum(answer != ids for answer, (ids, _) in zip(answers, expected, strict=False))
    return {"answers": 2 * len(prompts), "wrong answers": wrong, "lost answers": lost}


def faults_of(result: Mapping[str, Any]) -> list[str]:
    """What must not happen."""
    bad = ("wrong scores", "lost scores", "wrong token accepted", "right token refused")
    return [name for name in (*bad, "wrong answers", "lost answers") if result.get(name)]


def main() -> None:
    """Run both campaigns and write their result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--seconds", type=float, default=600, help="of each campaign")
    parser.add_argument("--timeout", type=float, default=10, help="of a request, in seconds")
    options = parser.parse_args()
    folder = options.output.absolute()
    prepare(folder)
    from rlhf.models.chat import Chat

    chat = Chat.load(folder / "base")
    results = {"reward server": reward_campaign(folder, options.seconds, options.timeout)}
    print(json.dumps(results), flush=True)
    results["rollout servers"] = rollout_campaign(folder, options.seconds, chat, timeout=options.timeout)
    (folder / "servers.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results["rollout servers"]))
    if bad := [name for result in results.values() for name in faults_of(result)]:
        raise SystemExit(f"FAILED: {', '.join(bad)}")


if __name__ == "__main__":
    main()
