"""Parameter groups: matrices decay, vectors do not, nothing is lost or counted twice."""

from pathlib import Path

from cmbert.config.load import load_recipe
from cmbert.model.heads import MaskedLanguageModel
from cmbert.train.optim import build_optimizer, parameter_groups


def test_groups(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    model = MaskedLanguageModel(recipe.model)
    decayed, plain = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(name.endswith(("norm.weight", "bias")) for name in map(names.get, map(id, plain["params"])))
    assert "model.embeddings.tok_embeddings.weight" in {names[id(p)] for p in decayed["params"]}
    assert sorted(map(id, decayed["params"] + plain["params"])) == sorted(names)
    optimizer = build_optimizer(model, recipe.optimizer)
    assert optimizer.defaults["betas"] == (recipe.optimizer.beta1, recipe.optimizer.beta2)
