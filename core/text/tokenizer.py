"""Texts as the numbers that a text tower reads: the byte-level BPE of CLIP."""

import gzip
import html
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import ftfy
import regex
import torch
from jaxtyping import Int
from torch import Tensor

Tokenize = Callable[[str | Sequence[str]], Int[Tensor, "B N"]]  # texts -> numbers of their pieces, padded with 0

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


class Tokenizer:
    """Byte-level BPE over lower-cased words, as CLIP has it.

    merges: pairs of symbols in the order in which they are joined. Numbers are, in this order, bytes, bytes that end a
    word, merges, start and end.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], *, context: int = 77) -> None:
        self.context = context
        self._letters = letters()
        symbols = list(self._letters.values())
        symbols += [f"{symbol}</w>" for symbol in symbols]
        symbols += ["".join(pair) for pair in merges]
        self._numbers = {symbol: number for number, symbol in enumerate([*symbols, START, END])}
        self._symbols = {number: symbol for symbol, number in self._numbers.items()}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._word = lru_cache(maxsize=2**16)(self._joined)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def start(self) -> int:
        """The number that begins a text."""
        return self._numbers[START]

    @property
    def end(self) -> int:
        """The number that ends a text, the largest of all."""
        return self._numbers[END]

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "B N"]:
        """Texts as rows of `context` numbers: start, the text, end, zeros. Longer ones are cut, and end as well."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), self.context, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = [self.start, *self.encode(text), self.end][: self.context]
            numbers[-1] = self.end
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def encode(self, text: str) -> list[int]:
        """The numbers of a text, without start and end."""
        found: list[int] = []
        for word in WORDS.findall(clean(text)):
            found += self._word("".join(self._letters[byte] for byte in word.encode()))
        return found

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of numbers, its words apart; start, end and padding are left out."""
        told = "".join(self._symbols[number] for number in numbers if 0 < number < self.start)
        bytes_of = {letter: byte for byte, letter in self._letters.items()}
        parts = [bytes(bytes_of[letter] for letter in part) for part in told.split("</w>")]
        return b" ".join(parts).decode("utf-8", errors="replace").strip()

    def _joined(self, word: str) -> tuple[int, ...]:
        """The numbers of a word: its symbols joined, the earliest merge first, until none is left."""
        if word in (START, END):
            return (self._numbers[word],)
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairwise(parts)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            pair, joined, at = tuple(parts[ranks.index(best) : ranks.index(best) + 2]), [], 0
            while at < len(parts):
                if tuple(parts[at : at + 2]) == pair:
                    joined.append("".join(pair))
                    at += 2
                else:
                    joined.append(parts[at])
                    at += 1
            parts = joined
        return tuple(self._numbers[part] for part in parts)


def clean(text: str) -> str:
    """As CLIP reads it: mended, without HTML, one blank between words, small letters."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


@cache
def letters() -> dict[int, str]:
    """A printable letter for every byte; printable ones stand for themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}


@cache
def clip_tokenizer(context: int = 77) -> Tokenizer:
    """The tokenizer of CLIP and of the released dino.txt: 49,408 numbers."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        merges = [(first, second) for first, second in (line.split() for line in file)]
    return Tokenizer(merges, context=context)
