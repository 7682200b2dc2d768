"""The notebook of adapters, executed as a reader would, on the smallest run the two recipes make."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from policy.recipe import align_policy
from reward.training.recipe import train_reward
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.formats import NOTE
from tests import notebooks

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "adapters.ipynb"
PROMPTS, SAMPLES = 4, 2

LOOK = """
import json
print(json.dumps({
    "shapes": [values.shape for both in judged.values() for values in both],
    "shares": list(judged),
    "policies": base.policies,
    "answers differ": answers_before != answers_after,
    "repeated": ask("75 %") == ask("75 %"),
    "ends": [judged[0][0].tolist() == judge(ask(None))[0].tolist(), judged[100][1].tolist() ==
    gold_after.tolist()], "gold": [gold_score(p.check, a) for p, g in zip(prompts, answers_after) for a in g]
    == gold_after.ravel().tolist(),
}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of one update and a policy of one update, both far too bold."""
    folder = tmp_path_factory.mktemp("runs")
    adapter = {"rank": 4, "alpha": 8}
    bold = {"learning_rate": 0.003, "warmup_steps": 0}
    train_reward(
        RewardConfig.model_validate(
            {
                "output": folder / "reward",
                "model": {"max_length": 256},
                "adapter": adapter,
                "data": {
                    "preferences": [{"path": "demo", "format": "helpsteer2-preference", "limit": 24}],
                    "validation_share": 0,
                },
                "stages": [
                    {"name": "bt", "preference_weight": 1, "max_steps": 1, "batch_size": 8, "optimizer": bold}
                ],
                "head_start": 8,
            }
        )
    )
    align_policy(
        PolicyConfig.model_validate(
            {
                "output": folder / "policy",
                "model": {"max_length": 256},
                "adapter": adapter,
                "reward": str(folder / "reward" / "final"),
                "data": {"prompts": [{"path": "demo", "limit": 24}], "max_prompt_tokens": 200},
                "rollouts": {
                    "engine": "transformers",
                    "prompts_per_step": 4,
                    "samples_per_prompt": 2,
                    "max_new_tokens": 16,
                },
                "algorithm": {"unfinished": "keep"},
                "optimizer": bold,
                "steps": 1,
                "evaluation": {"prompts": 2, "samples": 1},
            }
        )
    )
    return folder


def execute(notebook: NotebookNode, run: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        "RLHF_RUN": str(run),
        "RLHF_PROMPTS": str(PROMPTS),
        "RLHF_SAMPLES": str(SAMPLES),
        "RLHF_TOKENS": "12",
    }
    notebooks.execute(notebook, NOTEBOOK.parent, environment)


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_it_runs(run: Path) -> None:
    notebook = read()
    notebook.cells.append(nbformat.v4.new_code_cell(LOOK))
    execute(notebook, run)

    cells = {cell.id: cell for cell in code_cells(notebook)}
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    pictures = {
        name
        for name, cell in cells.items()
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    }
    assert pictures == {"distributions", "curve"}
    for name, cell in cells.items():
        printed = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert "".join(printed).strip() in ("", NOTE), f"{name}: {cell.outputs}"
    table = cells["table"].outputs[0].data["text/html"]
    assert table.count("<tr>") == 1 + PROMPTS  # with four prompts top, middle and bottom overlap
    assert table.count("reward ") == table.count("gold ") == 2 * PROMPTS

    content = json.loads(notebook.cells[-1].outputs[0].text)
    assert content == {
        "shapes": [[PROMPTS, SAMPLES]] * 12,
        "shares": [0, 25, 50, 75, 100, 125],
        "policies": ["policy", "25 %", "50 %", "75 %", "125 %"],
        "answers differ": True,
        "repeated": True,
        "ends": [True, True],
        "gold": True,
    }


@pytest.mark.slow
def test_a_run_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    notebook = read()
    nowhere = tmp_path / "nowhere"
    with pytest.raises(CellExecutionError) as caught:
        execute(notebook, nowhere)
    assert caught.value.ename == "ModelError"
    [failed] = [cell for cell in code_cells(notebook) if any(o.output_type == "error" for o in cell.outputs)]
    assert failed.id == "load"
    [error] = [output for output in failed.outputs if output.output_type == "error"]
    [message] = error.traceback
    assert message.startswith(f"ModelError: {nowhere}/reward/final is not a reward model")
    assert message.endswith("rlhf train-reward CONFIG.yaml")
