"""Encoders as a user has them in a directory, made here: real configurations, random weights."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP with the text tower of ViT-B/32 (its published configuration), a tiny image tower, random weights.

    The tokenizer splits words into letters, with the ids of the real one for start (49406) and end of text (49407).
    """
    pytest.importorskip("transformers", reason="needs viscera[text]")
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("clip-vit-base-patch32")
    # As in openai/clip-vit-base-patch32; its wrong eos_token_id is why transformers pools at the highest id there.
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=77,
        projection_dim=512,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=2,
    )
    image = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)
    torch.manual_seed(1)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=image.to_dict(), projection_dim=512)
    CLIPModel(config).save_pretrained(folder)
    write_clip_tokenizer(folder)
    return folder


def write_clip_tokenizer(folder):
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {letter: i for i, letter in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A tiny BERT as PubMedBERT is saved: a masked language model, no pooling settings, random weights."""
    pytest.importorskip("transformers", reason="needs viscera[text]")
    import torch
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "of",
        "the",
        "liver",
        "tumor",
        "left",
        "right",
        "kidney",
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 512})
    )
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
