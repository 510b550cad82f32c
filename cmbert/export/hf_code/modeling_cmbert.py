"""Chinese ModernBERT for transformers: ModernBERT with bias-free RMSNorm in place of LayerNorm, and nothing else.

This file travels inside exported model folders; load them with `trust_remote_code=True`. It needs transformers >= 5.
"""

from torch import nn
from transformers.models.modernbert.configuration_modernbert import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)


class CmbertConfig(ModernBertConfig):
    """ModernBertConfig under a name of its own, so that no reader applies LayerNorm to these weights."""

    model_type = "cmbert"


class RmsNormed:
    """Mixin that swaps every LayerNorm of a ModernBERT class for RMSNorm."""

    config_class = CmbertConfig

    def __init__(self, config):
        super().__init__(config)
        layer_norms = [name for name, module in self.named_modules() if isinstance(module, nn.LayerNorm)]
        for name in layer_norms:
            self.set_submodule(name, nn.RMSNorm(config.hidden_size, eps=config.norm_eps))


class CmbertModel(RmsNormed, ModernBertModel):
    pass


class CmbertForMaskedLM(RmsNormed, ModernBertForMaskedLM):
    pass


class CmbertForSequenceClassification(RmsNormed, ModernBertForSequenceClassification):
    pass


class CmbertForTokenClassification(RmsNormed, ModernBertForTokenClassification):
    pass


class CmbertForQuestionAnswering(RmsNormed, ModernBertForQuestionAnswering):
    pass


class CmbertForMultipleChoice(RmsNormed, ModernBertForMultipleChoice):
    pass
