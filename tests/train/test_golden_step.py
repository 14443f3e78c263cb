"""The published loss of a recorded training batch, by our collator, network and loss, at the recorded depths."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from train_fakes import IMAGE, record, run

from rdvla.checkpoints import load
from rdvla.checkpoints.names import stored_state
from rdvla.checkpoints.official_write import save_official
from rdvla.data.episodes import ChunkBatch
from rdvla.data.images import ImagePath
from rdvla.doctor.checks import compare_outputs
from rdvla.doctor.golden_vlm import load_vlm_case
from rdvla.model.prompt import Prompt
from rdvla.model.rdvla import absolute_error
from rdvla.policies.io import PolicyIO
from rdvla.policies.network import load_policy
from rdvla.policy import Ask
from rdvla.train.batches import collate
from rdvla.train.config import LoraConfig
from rdvla.train.lora import add_adapters
from rdvla.train.precision import checkpoint_activations
from rdvla.train.step import CPU
from rdvla.types import ActionConvention, Observation

GOLDEN = Path(__file__).parents[3] / "shared" / "parity" / "golden" / "vlm"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded tensors are not on this machine")


@pytest.fixture(scope="module")
def case():
    return load_vlm_case(GOLDEN)


def recorded_batch(case):
    """Return the recorded batch as our collator makes it from instructions and images; sample 1 has them swapped."""
    checkpoint, ids = case.checkpoint, case["train.input_ids"]
    lengths = case["train.attention_mask"].sum(dim=1).long() - case.model.config.backbone.num_latent_tokens
    texts = [
        checkpoint.tokenizer.decode(row[:n].tolist(), skip_special_tokens=False)
        for row, n in zip(ids, lengths, strict=True)
    ]
    before, after = case.model.config.prompt.split("{instruction}")
    tasks = [text.removeprefix(before).removesuffix(after) for text in texts]
    statistics = next(iter(checkpoint.statistics.values()))
    primary, wrist = case["in.image_primary_u8"].numpy(), case["in.image_wrist_u8"].numpy()
    prompt = Prompt(checkpoint.tokenizer, before + "{instruction}" + after)
    io = PolicyIO(case.model.config.cameras, ImagePath(), prompt, statistics, ActionConvention())
    batch = collate(
        io,
        ChunkBatch(
            images={"primary": np.stack([primary, wrist]), "wrist": np.stack([wrist, primary])},
            state=statistics.state.unnormalise(case["train.proprio"].float().numpy()),
            actions=statistics.action.unnormalise(case["train.actions"].float().numpy()),
            action_is_pad=np.zeros(case["train.actions"].shape[:2], dtype=bool),
            instructions=tuple(tasks),
            episode_index=np.arange(2),
            frame_index=np.arange(2),
        ),
    )
    assert torch.equal(batch.inputs.lengths, lengths)
    for row, length in enumerate(lengths):
        assert torch.equal(batch.inputs.ids[row, :length], ids[row, :length])
    return batch


def losses(case, batch):
    found = {}
    for key in [key for key in case.recorded if key.startswith("train.loss_r")]:
        depth = int(key.removeprefix("train.loss_r"))
        n_grad = min(depth, case.model.config.head.backprop_depth)
        predicted = CPU.predict(case.model, batch, case["train.S0"], n_no_grad=depth - n_grad, n_grad=n_grad)
        total, count = absolute_error(predicted, batch.actions, batch.action_is_pad)
        found[key] = (total / count).item()
    assert found
    return found


def test_the_published_loss(case):
    batch = recorded_batch(case)
    expected = {key: pytest.approx(case[key].item(), abs=2e-5) for key in losses(case, batch)}
    assert losses(case, batch) == expected
    case.model.requires_grad_(requires_grad=True)
    checkpoint_activations(case.model)
    add_adapters(case.model, LoraConfig(rank=4))
    assert losses(case, batch) == expected, "new adapters, or recomputing, changed the loss"


def test_released_weights_are_trained_saved_and_released_again(tmp_path):
    """From the command's settings: adapters on a released checkpoint, then out in the released layout and back."""
    dataset = record(tmp_path / "demos", episodes=2, length=4)
    start = tmp_path / "start"
    shutil.copytree(next(GOLDEN.glob("ckpt_*")), start)
    towers = json.loads((GOLDEN / "golden.json").read_text())["tiny_vision"]
    (start / "rdvla.json").write_text(json.dumps({"vision": towers}))
    model = {"init_from": str(start), "lora": {"rank": 4}, "gradient_checkpointing": True}
    changes = {"max_steps": 1, "batch_size": 1, "precision": "mixed", "trackers": ()}
    data = {"root": str(dataset), "validation_fraction": 0.0}
    policy = run(dataset, tmp_path / "run", model=model, data=data, **changes)
    trained = load(policy)
    save_official(tmp_path / "released", trained)
    again = load(tmp_path / "released")
    before, own, theirs = (stored_state(each.model) for each in (load(start), trained, again))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert own["head.coda.output_proj.weight"].dtype == torch.bfloat16
    moved = {name.split(".")[0] for name in own if not torch.equal(own[name], before[name])}
    assert moved == {"vision", "projector", "language", "latent_tokens", "state_projector", "head"}
    seen = Observation(
        {name: np.full((256, 256, 3), 20 * len(name), np.uint8) for name in IMAGE}, np.ones(8, np.float32), "pick it up"
    )
    chunks = [load_policy(path).infer(seen, Ask(seed=0)) for path in (tmp_path / "released", policy)]
    check = compare_outputs("released", "actions", *(chunk.actions for chunk in chunks))
    assert check.status == "pass", check
    assert chunks[0].num_recurrences == chunks[1].num_recurrences
