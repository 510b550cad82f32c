"""The ids that special tokens have in tokenizers made here."""

from cmbert.vocabulary import ROLES, SPECIAL_TOKENS, Vocabulary, make_vocabulary

PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_TOKENS))
NUM_SPECIAL_TOKENS = len(SPECIAL_TOKENS)


def own_vocabulary(size: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer of `size` ids made here."""
    return make_vocabulary(dict(zip(ROLES, range(NUM_SPECIAL_TOKENS), strict=True)), set(), size)
