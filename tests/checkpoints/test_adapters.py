"""An un-merged adapter on a base VLM, and the base VLM as the start of training."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoint_fakes as fakes
from rdvla.checkpoints import load, save_official
from rdvla.checkpoints.base_vlm import init_from_base, read_base_vlm
from rdvla.checkpoints.names import stored_state
from rdvla.errors import CheckpointError
from rdvla.model.rdvla import RDVLA

RANK, ALPHA = 2, 4


def write_adapter(directory, tensors, targets, **config):
    """Write an adapter in peft's names; the convolution's B has two more axes, as peft writes it."""
    generator = torch.Generator().manual_seed(5)
    adapter = {}
    for name in targets:
        weight = tensors[name]
        down = torch.randn(RANK, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator)
        module = "base_model.model." + name.removesuffix(".weight")
        adapter |= {f"{module}.lora_A.weight": down.bfloat16(), f"{module}.lora_B.weight": up.bfloat16()}
    head = "base_model.model.language_model.lm_head"
    adapter |= {f"{head}.lora_A.weight": torch.randn(RANK, 16), f"{head}.lora_B.weight": torch.zeros(300, RANK)}
    directory.mkdir()
    save_file(adapter, directory / "adapter_model.safetensors")
    document = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_dora": False, "bias": "none"} | config
    (directory / "adapter_config.json").write_text(json.dumps(document))
    return adapter


TARGETS = (
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "projector.fc1.weight",
    "vision_backbone.featurizer.patch_embed.proj.weight",
    "vision_backbone.fused_featurizer.blocks.1.mlp.fc2.weight",
)


class TestAdapter:
    @pytest.fixture
    def parts(self, tmp_path):
        """A base directory, and a released one whose VLM is only an adapter."""
        base, tuned = tmp_path / "base", tmp_path / "tuned"
        save_official(base, fakes.make("released", dtype=torch.bfloat16))
        save_official(tuned, fakes.make("released", dtype=torch.bfloat16))
        tensors = load_file(tuned / "model.safetensors")
        (tuned / "model.safetensors").unlink()
        adapter = write_adapter(tuned / "lora_adapter", tensors, TARGETS)
        return base, tuned, tensors, adapter

    def test_merged_weights(self, parts):
        base, tuned, tensors, adapter = parts
        merged, plain = stored_state(load(tuned, base=base).model), stored_state(load(base).model)
        ours = {"language_model.": "language.", "vision_backbone.": "vision."}
        for name in TARGETS:
            module = "base_model.model." + name.removesuffix(".weight")
            down, up = (adapter[f"{module}.lora_{half}.weight"].flatten(1).double() for half in "AB")
            expected = tensors[name].double() + (ALPHA / RANK) * (up @ down).reshape(tensors[name].shape)
            own = next((new + name.removeprefix(old) for old, new in ours.items() if name.startswith(old)), name)
            found = merged[own].double()
            assert torch.allclose(found, expected, rtol=2**-7, atol=2**-7)
            assert not torch.equal(merged[own], plain[own])
        changed = [name for name in merged if not torch.equal(merged[name], plain[name])]
        assert len(changed) == len(TARGETS)

    def test_equals_peft(self, parts):
        """The same merge by peft, on a linear layer and a convolution."""
        peft = pytest.importorskip("peft", reason="peft is not installed (extra 'train')")
        _, _, tensors, adapter = parts
        linear, convolution = "projector.fc1", "vision_backbone.featurizer.patch_embed.proj"
        for module in (linear, convolution):
            weight = tensors[f"{module}.weight"]
            layer = (
                torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                if weight.ndim == 2
                else torch.nn.Conv2d(3, weight.shape[0], 14, stride=14, bias=False)
            ).bfloat16()
            network = torch.nn.Sequential(layer)
            network[0].weight.data = weight.clone()
            wrapped = peft.get_peft_model(network, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"]))
            with torch.no_grad():
                for half in "AB":
                    part = getattr(wrapped.base_model.model[0], f"lora_{half}")["default"]
                    part.weight.data = adapter[f"base_model.model.{module}.lora_{half}.weight"].clone()
            expected = wrapped.merge_and_unload()[0].weight
            from rdvla.checkpoints.lora import merge_adapter

            found = merge_adapter(tensors, parts[1] / "lora_adapter")[f"{module}.weight"]
            assert torch.equal(found, expected), module

    def test_without_its_base(self, parts):
        with pytest.raises(CheckpointError, match="name the base VLM"):
            load(parts[1])

    def test_base_for_a_merged_checkpoint(self, parts):
        with pytest.raises(CheckpointError, match="un-merged"):
            load(parts[0], base=parts[1])

    @pytest.mark.parametrize(
        "setting", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"a": 3}}, {"r": 0}]
    )
    def test_other_kinds_of_adapters(self, parts, setting):
        path = parts[1] / "lora_adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | setting))
        with pytest.raises(CheckpointError, match=next(iter(setting))):
            load(parts[1], base=parts[0])

    def test_the_file_of_older_peft(self, parts):
        path = parts[1] / "lora_adapter" / "adapter_model.safetensors"
        expected, older = load(parts[1], base=parts[0]), path.with_name("adapter_model.bin")
        torch.save(load_file(path), older)
        with pytest.raises(CheckpointError, match=r"both adapter_model\.safetensors and adapter_model\.bin"):
            load(parts[1], base=parts[0])
        path.unlink()
        assert fakes.same_tensors(load(parts[1], base=parts[0]), expected)

    def test_an_adapter_of_other_sizes(self, parts):
        path = parts[1] / "lora_adapter" / "adapter_model.safetensors"
        adapter = load_file(path)
        name = "base_model.model.projector.fc1.lora_A.weight"
        adapter[name] = adapter[name][:, :-1].contiguous()
        save_file(adapter, path)
        with pytest.raises(CheckpointError, match=r"projector.fc1.weight: A \[2, 19\] does not fit"):
            load(parts[1], base=parts[0])

    def test_half_a_pair(self, parts):
        path = parts[1] / "lora_adapter" / "adapter_model.safetensors"
        adapter = load_file(path)
        del adapter["base_model.model.projector.fc1.lora_B.weight"]
        save_file(adapter, path)
        with pytest.raises(CheckpointError, match=r"projector\.fc1"):
            load(parts[1], base=parts[0])


class TestBase:
    @pytest.fixture
    def base(self, tmp_path):
        """A Prismatic checkpoint with towers, as its trainer nests and names it."""
        save_official(tmp_path / "released", fakes.make("released", seed=4))
        tensors = load_file(tmp_path / "released" / "model.safetensors")
        nested = {"vision_backbone": {}, "projector": {}, "llm_backbone": {}}
        for name, tensor in tensors.items():
            if name.startswith("vision_backbone."):
                name = name.removeprefix("vision_backbone.").replace("scale_factor", "gamma")
                name = name.replace("fused_featurizer", "siglip_featurizer")
                name = name if name.startswith("siglip_") else name.replace("featurizer", "dino_featurizer")
                nested["vision_backbone"][name] = tensor
            elif name.startswith("projector."):
                for old, new in (("fc1", "0"), ("fc2", "2"), ("fc3", "4")):
                    name = name.replace(old, f"projector.{new}") if old in name else name
                nested["projector"][name.removeprefix("projector.")] = tensor
            elif name.startswith("language_model."):
                nested["llm_backbone"]["llm." + name.removeprefix("language_model.")] = tensor
        nested["llm_backbone"]["llm.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"]
        (tmp_path / "prism" / "checkpoints").mkdir(parents=True)
        path = tmp_path / "prism" / "checkpoints" / "step-020792-epoch-01-loss=0.5268.pt"
        torch.save({"model": nested}, path)
        return path

    def test_fills_everything_but_the_new_parts(self, base):
        model, start = fakes.make("released", seed=9).model, fakes.make("released", seed=9).model.state_dict()
        source = fakes.make("released", seed=4).model.state_dict()
        init_from_base(model, base.parent.parent)
        for name, tensor in model.state_dict().items():
            fresh = name.startswith(("head.", "state_projector.", "backbone.latent_tokens"))
            assert torch.equal(tensor, (start if fresh else source)[name]), name

    def test_names(self, base):
        names = set(read_base_vlm(base))
        assert "vision_backbone.featurizer.blocks.0.ls1.scale_factor" in names
        assert "vision_backbone.fused_featurizer.attn_pool.latent" in names
        assert "projector.fc3.bias" in names
        assert "language_model.model.layers.1.mlp.up_proj.weight" in names
        assert "language_model.lm_head.weight" not in names
        assert "action_queries.weight" not in names

    def test_without_towers(self, base):
        content = torch.load(base, weights_only=True)
        del content["model"]["vision_backbone"]
        torch.save(content, base)
        model = fakes.make("released", seed=9).model
        with pytest.raises(CheckpointError, match="no vision towers"):
            init_from_base(model, base)

    def test_a_missing_tensor(self, base):
        content = torch.load(base, weights_only=True)
        del content["model"]["projector"]["projector.4.bias"]
        torch.save(content, base)
        with pytest.raises(CheckpointError, match=r"missing: projector\.fc3\.bias"):
            init_from_base(RDVLA(fakes.released_config(300)), base)

    def test_another_structure(self, tmp_path):
        torch.save({"model": {"weights": {}}}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="must hold vision_backbone, projector, llm_backbone"):
            read_base_vlm(tmp_path / "x.pt")
