"""Folders of other people's encoders as disks, editors and other programs damage them: a model, or one line."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given

from cmbert.errors import CmbertError
from cmbert.model.folder import load_folder
from cmbert.transfer.encoders import open_encoder
from tests.cmbert.transfer.foreign import write_encoder
from tests.fuzz.doors import accepts_or_says, damaged_bytes, damaged_json, inputs_at_this_door

SHARE = 0.1  # an input builds an encoder twice: 20 ms


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT, an XLNet and a ModernBERT."""
    place = tmp_path_factory.mktemp("encoders")
    return {name: write_encoder(place / name, name) for name in ("bert", "xlnet", "modernbert")}


def config_of(name: str) -> dict:
    """What transformers writes for a family."""
    from tests.cmbert.transfer.foreign import family

    values = family(name)[0](65).config.to_dict()
    return json.loads(json.dumps(values, default=str))


def try_file(whole: Path, name: str, data: bytes) -> None:
    """Open a folder with one file of it damaged."""
    path = whole / name
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        accepts_or_says(lambda: open_encoder(str(whole)), str(whole))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["bert", "xlnet", "modernbert"])
def test_config_json(name: str, folders: dict[str, Path]) -> None:
    @given(data=damaged_json(config_of(name)))
    @inputs_at_this_door(SHARE)
    def door(data: bytes) -> None:
        try_file(folders[name], "config.json", data)

    door()


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(file: str, folders: dict[str, Path]) -> None:
    valid = json.loads((folders["bert"] / file).read_text(encoding="utf-8"))

    @given(data=damaged_json(valid))
    @inputs_at_this_door(SHARE)
    def door(data: bytes) -> None:
        try_file(folders["bert"], file, data)

    door()


def test_weights(folders: dict[str, Path]) -> None:
    valid = (folders["bert"] / "model.safetensors").read_bytes()

    @given(data=damaged_bytes(valid))
    @inputs_at_this_door(SHARE)
    def door(data: bytes) -> None:
        try_file(folders["bert"], "model.safetensors", data)

    door()


def test_our_own_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    """What reads an exported folder without transformers."""
    folder = tmp_path / "ours"
    shutil.copytree(folders["modernbert"], folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values |= {"global_attn_every_n_layers": 3, "norm_eps": 1e-5}
    with pytest.raises(CmbertError):
        load_folder(folder)

    @given(data=damaged_json(values))
    @inputs_at_this_door()
    def door(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        accepts_or_says(lambda: load_folder(folder), str(folder))

    door()
