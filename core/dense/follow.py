"""Objects followed through a clip whose features are at hand: marked, corrected, and every vote on record.

The label propagation of `core.dense.propagation` (paper, section 6.1.5 and appendix D.5) for people who try things out.
Who resembles whom does not depend on what is marked, so it is searched once for each pair of frames: other marks, topk
or temperature then cost milliseconds a frame, and a correction asks for its own frame alone. Frames that were marked,
the first one and every correction, stay in the context for good, and of the others those since the last mark are asked;
where nothing is corrected, that is the paper's way.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from core.dense.extract import Progress
from core.dense.geometry import Cell
from core.dense.propagation import CONTEXT, RADIUS, TEMPERATURE, TOPK
from core.threads import evenly, in_threads, num_threads

CANDIDATES = 16  # kept of each search: any topk up to this needs no new one
TILE = 8  # patches along the side of a block that is searched at once
KEPT = 2**28  # bytes of searches that are remembered: nineteen a frame of 60 frames of 32 x 57 patches
TOGETHER = 8  # frames that are searched in one marked frame at once
GROUPS = 16  # values that compete before they are sorted


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Who votes, and how votes are weighed; the defaults are the official notebook's."""

    context: int = CONTEXT  # frames before this one, beside the marked ones
    radius: float | None = RADIUS  # patches, from a patch's own place; None: from anywhere
    topk: int = TOPK  # votes a patch
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        if self.context < 1 or self.topk < 1 or not self.temperature > 0 or (self.radius or 0) < 0:
            raise ValueError(
                "context and topk are at least 1, temperature is positive and radius not negative; got "
                f"{self.context}, {self.topk}, {self.temperature}, {self.radius}"
            )


@dataclass(frozen=True)
class Vote:
    """One of the patches that decided what another patch is."""

    frame: int
    row: int
    col: int
    weight: float  # of all the votes for this patch, which sum to 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Followed:
    """What became of the marks: soft labels of every frame, and who voted for them."""

    labels: Float[Tensor, "T H W K"]  # background first; all zero before the first mark
    voters: Integer[Tensor, "T P k"]  # frame x patches + patch, strongest first; -1 where there is none
    weights: Float[Tensor, "T P k"]
    marks: Mapping[int, Integer[Tensor, "H W"]]
    rules: Rules

    @property
    def masks(self) -> Integer[Tensor, "T H W"]:
        """The likeliest object of every patch, 0 for the background."""
        return self.labels.argmax(dim=-1)

    def votes(self, frame: int, cell: Cell) -> list[Vote]:
        """The patches that voted for one, strongest first; none in a frame that was marked or comes before one.

        IndexError for a frame or a cell that is not there.
        """
        _, rows, cols, _ = self.labels.shape
        row, col = cell
        if not (0 <= frame < len(self.labels) and 0 <= row < rows and 0 <= col < cols):
            raise IndexError(f"no patch {row}, {col} in frame {frame}: {len(self.labels)} frames of {rows}x{cols}")
        place = row * cols + col
        pairs = zip(self.voters[frame, place].tolist(), self.weights[frame, place].tolist(), strict=True)
        return [
            Vote(voter // (rows * cols), voter % (rows * cols) // cols, voter % cols, weight)
            for voter, weight in pairs
            if voter >= 0 and weight > 0
        ]


class Follower:
    """The features of a clip's frames, ready to carry marks from one to the next.

    follower = Follower(features)                        # (frames, rows, columns, channels), of any length
    found = follower.follow({0: mask})                   # numbers of objects on the patch grid, 0: background
    again = follower.follow({0: mask, 20: better}, former=found)   # frames 0 to 19 stay as they were
    """

    def __init__(self, features: Float[Tensor, "T H W D"]) -> None:
        if not len(features):
            raise ValueError("a clip needs at least one frame")
        unit = torch.stack([F.normalize(frame.float(), dim=-1).to(features.dtype) for frame in features])
        self.rows, self.cols = features.shape[1:3]
        self.unit = unit.flatten(1, 2)  # (T, P, D)
        self._found: OrderedDict[tuple[int, int, float | None, int], tuple[Tensor, Tensor]] = OrderedDict()
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self.unit)

    def follow(
        self,
        marks: Mapping[int, Integer[Tensor, "H W"]],
        rules: Rules | None = None,
        *,
        former: Followed | None = None,
        progress: Progress | None = None,
    ) -> Followed:
        """Labels of all frames from the first mark on; a marked frame keeps its own.

        former: an answer with other marks, of which the frames before the first difference are taken over. progress is
        told after every frame, and cancels by raising: `former` is as good as before. ValueError for marks that are
        none, of another grid, or of a frame that is not there.
        """
        rules = rules or Rules()
        self._check(marks)
        objects = max(int(mask.max()) for mask in marks.values())
        size, patches = (len(self), self.rows * self.cols), self.rows * self.cols
        labels = torch.zeros(*size[:1], patches, objects + 1)
        voters = torch.full((len(self), patches, rules.topk), -1, dtype=torch.int32)
        weights = torch.zeros(len(self), patches, rules.topk)
        start = min(marks)
        if former is not None and former.rules == rules:
            kept = _agreeing(former.marks, marks)
            start = min(kept, len(self)) if former.marks and kept > min(marks) else start
            known = min(former.labels.shape[-1], objects + 1)
            labels[:start, :, :known] = former.labels[:start, :, :, :known].flatten(1, 2)
            voters[:start], weights[:start] = former.voters[:start], former.weights[:start]
        ahead = start
        self._look_back(start, sorted(marks), rules, progress)
        for frame in range(start, len(self)):
            if frame in marks:
                labels[frame] = F.one_hot(marks[frame].flatten().long(), objects + 1).float()
            else:
                if frame >= ahead:
                    ahead = self._look_ahead(frame, sorted(marks), rules)
                voters[frame], weights[frame] = self._ask(frame, sorted(marks), rules)
                chosen = labels.flatten(0, 1)[voters[frame].long().clamp(min=0)]  # (P, k, K)
                labels[frame] = (weights[frame][..., None] * chosen).sum(dim=1)
            if progress:
                progress(frame - start + 1, len(self) - start, "frames")
        return Followed(
            labels=labels.unflatten(1, (self.rows, self.cols)), voters=voters, weights=weights,
            marks={frame: mask.clone() for frame, mask in marks.items()}, rules=rules,
        )  # fmt: skip

    def _check(self, marks: Mapping[int, Tensor]) -> None:
        if not marks or not any(bool(mask.any()) for mask in marks.values()):
            raise ValueError("nothing is marked: mark an object in one of the frames first")
        for frame, mask in marks.items():
            if not 0 <= frame < len(self):
                raise ValueError(f"there is no frame {frame} to mark; the clip has 0 to {len(self) - 1}")
            if tuple(mask.shape) != (self.rows, self.cols):
                raise ValueError(
                    f"the mark of frame {frame} is {'x'.join(map(str, mask.shape))}, the grid of patches "
                    f"{self.rows}x{self.cols}"
                )

    def _ask(self, frame: int, marked: Sequence[int], rules: Rules) -> tuple[Tensor, Tensor]:
        """Voters (P, k) and their weights, from the marked frames so far and those just before."""
        context = _context(frame, marked, rules)
        if self._missing(frame, context, rules):  # so many are kept that this is rare; all, or one drives out another
            self._search([frame], context, rules)
        found = [self._found[frame, other, rules.radius, _count(rules)] for other in context]
        cosine, voters = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        best, index = cosine.topk(min(rules.topk, cosine.shape[1]), dim=1)
        weights = (best / rules.temperature).softmax(dim=1)  # out of reach: weighs nothing
        short = rules.topk - best.shape[1]
        return F.pad(voters.gather(1, index), (0, short), value=-1), F.pad(weights, (0, short))

    def _look_ahead(self, frame: int, marked: Sequence[int], rules: Rules) -> int:
        """Searches for a few frames at once, one a core, and says up to which: no search waits for labels."""
        frames = range(frame, min(frame + num_threads(), len(self)))
        wanted = [(each, self._missing(each, _context(each, marked, rules), rules)) for each in frames]
        wanted = [(each, others) for each, others in wanted if others]
        shares = [wanted[part] for part in evenly(len(wanted), min(num_threads(), len(wanted)))] if wanted else []
        if shares:
            in_threads(lambda share: self._search_all(share, rules), shares)
        return frames.stop

    def _look_back(self, start: int, marked: Sequence[int], rules: Rules, progress: Progress | None) -> None:
        """Searches a marked frame for all later frames that have been compared with everything else already.

        So a correction in a clip that was followed before is a few large products instead of many small ones.
        """
        alone: dict[int, list[int]] = {}
        for frame in range(start, len(self)):
            if frame not in marked and len(missing := self._missing(frame, _context(frame, marked, rules), rules)) == 1:
                alone.setdefault(missing[0], []).append(frame)
        for other, frames in alone.items():
            if other not in marked or len(frames) == 1:  # nothing to be done at once
                continue
            parts = [(frames[at : at + TOGETHER], [other], rules) for at in range(0, len(frames), TOGETHER)]
            for at in range(0, len(parts), num_threads()):
                now = parts[at : at + num_threads()]
                in_threads(lambda part: self._search(*part), now)
                if progress:
                    done = now[-1][0][-1] - frames[0] + 1
                    progress(done, frames[-1] - frames[0] + 1, "frames beside the correction")

    def _search_all(self, wanted: Sequence[tuple[int, list[int]]], rules: Rules) -> None:
        for frame, others in wanted:
            self._search([frame], others, rules)

    def _missing(self, frame: int, others: Sequence[int], rules: Rules) -> list[int]:
        """Of these frames those that have not been searched for what resembles the patches of `frame`."""
        return [other for other in others if (frame, other, rules.radius, _count(rules)) not in self._found]

    def _search(self, frames: list[int], others: list[int], rules: Rules) -> None:
        """Keeps, for each pair, cosines (P, n) of the most similar patches and which they are (frame x P + patch)."""
        count, patches = _count(rules), self.rows * self.cols
        queries, keys = self.unit[frames].float(), self.unit[others].float()  # (F, P, D), (C, P, D)
        tiles = _tiles(self.rows, self.cols, rules.radius)
        width = min(count, max(len(window) for _, window in tiles))
        cosine = torch.full((len(frames), len(others), patches, width), -torch.inf)
        voters = torch.zeros(len(frames), len(others), patches, width, dtype=torch.int32)
        for places, window in tiles:
            best, index = self._search_tile(queries, keys, rules, places, window)
            cosine[:, :, places, : best.shape[-1]], voters[:, :, places, : best.shape[-1]] = best, window[index].int()
        with self._guard:
            for row, frame in enumerate(frames):
                for at, other in enumerate(others):
                    self._found[frame, other, rules.radius, count] = cosine[row, at], voters[row, at] + other * patches
            most = KEPT // (8 * patches * width) + len(frames) * len(others) * num_threads()
            while len(self._found) > most:
                self._found.popitem(last=False)  # the oldest

    def _search_tile(
        self, queries: Tensor, keys: Tensor, rules: Rules, places: Tensor, window: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of each pair of frames (F, C, p, n) the largest cosines and which of the window's patches they belong to."""
        cosine = queries[:, places].flatten(0, 1) @ keys[:, window].flatten(0, 1).T
        shape = (len(queries), len(places), len(keys))
        cosine = cosine.unflatten(1, (len(keys), -1)).unflatten(0, shape[:2])  # (F, p, C, n)
        if rules.radius is not None:
            cosine.masked_fill_(~_near(places, window, self.cols, rules.radius)[:, None], -torch.inf)
        best, index = largest(cosine.flatten(0, 2), _count(rules))
        return best.unflatten(0, shape).transpose(1, 2), index.unflatten(0, shape).transpose(1, 2)


def largest(values: Float[Tensor, "N M"], count: int) -> tuple[Float[Tensor, "N c"], Integer[Tensor, "N c"]]:
    """The `count` largest values of each row and where they are, as `topk`: several times faster on long rows.

    Values compete in groups first: the largest ones lie in the groups whose winners are the largest.
    """
    length = values.shape[1]
    if length < 2 * GROUPS * count:
        return values.topk(min(count, length), dim=1)
    padded = F.pad(values, (0, -length % GROUPS), value=-torch.inf)
    every = padded.shape[1] // GROUPS
    winners = padded.unflatten(1, (GROUPS, every))
    while winners.shape[1] > 1:
        half = winners.shape[1] // 2
        winners = torch.maximum(winners[:, :half], winners[:, half:])
    groups = winners[:, 0].topk(count, dim=1, sorted=False).indices  # (N, c)
    members = (groups[..., None] + every * torch.arange(GROUPS)).flatten(1)
    best, index = padded.gather(1, members).topk(count, dim=1)
    return best, members.gather(1, index).clamp(max=length - 1)


def grown(features: Float[Tensor, "H W D"], cell: Cell, threshold: float) -> Bool[Tensor, "H W"]:
    """The patches that hang together with one and resemble it: cosine at least `threshold`, edge to edge.

    ValueError for a cell outside of the grid.
    """
    rows, cols, _ = features.shape
    if not (0 <= cell[0] < rows and 0 <= cell[1] < cols):
        raise ValueError(f"no patch {cell[0]}, {cell[1]} in a grid of {rows}x{cols}")
    unit = F.normalize(features.float(), dim=-1)
    alike = unit @ unit[cell] >= threshold
    region = torch.zeros(rows, cols, dtype=torch.bool)
    region[cell] = True
    while True:
        wider = region.clone()
        wider[1:] |= region[:-1]
        wider[:-1] |= region[1:]
        wider[:, 1:] |= region[:, :-1]
        wider[:, :-1] |= region[:, 1:]
        wider = wider & alike | region
        if torch.equal(wider, region):
            return region
        region = wider


def _count(rules: Rules) -> int:
    return max(CANDIDATES, rules.topk)


def _context(frame: int, marked: Sequence[int], rules: Rules) -> list[int]:
    """The frames that vote: every marked one so far, and those just before but not before the last mark."""
    last = max(other for other in marked if other < frame)  # what lies before a correction was in error: not asked
    recent = range(max(last, frame - rules.context), frame)
    return [other for other in marked if other < frame and other not in recent] + [*recent]


def _tiles(rows: int, cols: int, radius: float | None) -> list[tuple[Tensor, Tensor]]:
    """Blocks of patches, and for each block the rectangle of patches that any of them may look at."""
    grid, reach = torch.arange(rows * cols).unflatten(0, (rows, cols)), rows + cols
    if radius is not None:
        reach = math.floor(radius)
    return [
        (
            grid[top : top + TILE, left : left + TILE].flatten(),
            grid[max(0, top - reach) : top + TILE + reach, max(0, left - reach) : left + TILE + reach].flatten(),
        )
        for top in range(0, rows, TILE)
        for left in range(0, cols, TILE)
    ]


def _near(places: Tensor, window: Tensor, cols: int, radius: float) -> Tensor:
    down = (places // cols)[:, None] - window // cols
    across = (places % cols)[:, None] - window % cols
    return down.square() + across.square() <= radius**2


def _agreeing(former: Mapping[int, Tensor], marks: Mapping[int, Tensor]) -> int:
    """How many frames from the start on do not know of any difference between two sets of marks."""
    frames = sorted({*former, *marks})
    differ = [at for at in frames if at not in former or at not in marks or not torch.equal(former[at], marks[at])]
    return min(differ, default=2**31)
