"""Chinese ModernBERT for transformers: ModernBERT with bias-free RMSNorm in place of LayerNorm, and nothing else.

This file travels inside exported model folders; load them with `trust_remote_code=True`. It works with transformers
from 4.48.0 and torch from 2.5 on.
"""

import torch
from torch import nn
from transformers.models.auto import modeling_auto as auto
from transformers.models.modernbert import modeling_modernbert as stock


class RMSNorm(nn.Module):
    """RMSNorm without a bias. Its weight is (1, D), so that nothing takes it for a LayerNorm's, which is (D,)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width))
        self.eps = eps

    def forward(self, hidden):
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], self.weight[0], self.eps)


class RmsNormed:
    """Mixin that swaps every LayerNorm of a ModernBERT class for RMSNorm."""

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "norm", None) != "rmsnorm":
            # Old versions open every ModernBERT with this class once they have opened one: then it is the stock one.
            self.__class__ = type(self).__mro__[2]
            return
        layer_norms = [name for name, module in self.named_modules() if isinstance(module, nn.LayerNorm)]
        for name in layer_norms:
            self.set_submodule(name, RMSNorm(config.hidden_size, config.norm_eps))

    def mark_tied_weights_as_initialized(self, *found):
        """Keep what 5.3 forgets of code like this: a decoder that is missing in the file has to be tied."""
        missing = [info.missing_keys for info in found]
        super().mark_tied_weights_as_initialized(*found)
        for index, info in enumerate(found):
            info.missing_keys = missing[index]

    def _init_weights(self, module):
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        else:
            super()._init_weights(module)


# _auto_class: transformers copies this file beside the weights that it saves.
class CmbertModel(RmsNormed, stock.ModernBertModel):
    _auto_class = "AutoModel"


class CmbertForMaskedLM(RmsNormed, stock.ModernBertForMaskedLM):
    _auto_class = "AutoModelForMaskedLM"


class CmbertForSequenceClassification(RmsNormed, stock.ModernBertForSequenceClassification):
    _auto_class = "AutoModelForSequenceClassification"


class CmbertForTokenClassification(RmsNormed, stock.ModernBertForTokenClassification):
    _auto_class = "AutoModelForTokenClassification"


if hasattr(stock, "ModernBertForQuestionAnswering"):  # not in the oldest versions

    class CmbertForQuestionAnswering(RmsNormed, stock.ModernBertForQuestionAnswering):
        _auto_class = "AutoModelForQuestionAnswering"


if hasattr(stock, "ModernBertForMultipleChoice"):

    class CmbertForMultipleChoice(RmsNormed, stock.ModernBertForMultipleChoice):
        _auto_class = "AutoModelForMultipleChoice"


# Pipelines say of a class that these do not name that it is not supported, and run it all the same.
auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES["cmbert"] = "CmbertForMaskedLM"
auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["cmbert"] = "CmbertForSequenceClassification"
auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["cmbert"] = "CmbertForTokenClassification"
