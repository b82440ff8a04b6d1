"""What a network learns from: documents, one a line, or a text as one stream of characters."""

from collections.abc import Sequence

from tapegpt.corpus.documents import (
    TokenizedCorpus,
    digest_of,
    read_again,
    read_documents,
    remarks_on,
    shuffled,
    tokenize,
)
from tapegpt.corpus.files import default_corpus
from tapegpt.corpus.stream import TokenStream
from tapegpt.corpus.tokenizer import Tokenizer

Corpus = Sequence[str] | TokenStream

__all__ = [
    "Corpus",
    "TokenStream",
    "TokenizedCorpus",
    "Tokenizer",
    "default_corpus",
    "digest_of",
    "read_again",
    "read_documents",
    "remarks_on",
    "shuffled",
    "tokenize",
]
