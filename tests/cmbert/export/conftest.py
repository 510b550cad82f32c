"""Folders that are served, as `cmbert embed-train` and transformers write them."""

import shutil
from pathlib import Path

import pytest
import torch

from cmbert.export.hf import _write

VOCAB_SIZE = 384  # of the tests' tokenizer
CARD = """\
---
license: apache-2.0
---

# 小模型

## Use

```python
1 / 0
```

## Results

Spearman .5
"""


@pytest.fixture
def make_base(make_perturbed, tokenizer_directory, tmp_path):
    """Norm -> an exported folder of ours, without a card."""

    def make_base(norm: str = "rmsnorm") -> Path:
        folder = tmp_path / f"base_{norm}"
        folder.mkdir()
        _write(folder, make_perturbed(norm, VOCAB_SIZE), tokenizer_directory)
        return folder

    return make_base


@pytest.fixture
def make_vectors(make_base, tmp_path):
    """Norm, pooling -> a folder as `cmbert embed-train` writes it."""
    from cmbert.transfer.embedding.scoring import open_embedder
    from cmbert.transfer.embedding.train import save_embedder

    def make_vectors(norm: str = "rmsnorm", pooling: str = "mean") -> Path:
        embedder = open_embedder(str(make_base(norm)), 96)
        embedder[1].pooling_mode = pooling
        save_embedder(embedder, tmp_path / "vectors", lambda aside: (aside / "README.md").write_text(CARD))
        return tmp_path / "vectors"

    return make_vectors


@pytest.fixture
def make_classifier(make_base, tokenizer_directory, tmp_path):
    """Kind, norm -> a folder as transformers saves a classifier."""
    import transformers

    def make_classifier(kind: str = "Sequence", norm: str = "rmsnorm", **settings) -> Path:
        made = getattr(transformers, f"AutoModelFor{kind}Classification")
        base, folder = make_base(norm), tmp_path / "classifier"
        settings = settings or {"num_labels": 3, "id2label": dict(enumerate(["差评", "中评", "好评"]))}
        torch.manual_seed(0)
        made.from_pretrained(base, trust_remote_code=norm == "rmsnorm", **settings).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(base / name, folder / name)
        return folder

    return make_classifier
