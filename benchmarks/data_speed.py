"""Speed and memory of data preparation: a million chat rows with known duplicates, end to end.

The rows are made from a seed, with planted exact duplicates, near duplicates and pairs that only
look like near duplicates. Every stage runs in a fresh process of its own, then all of them in one;
beside them stand TRL's own tokenisation and datasketch used plainly, on fewer rows, taking turns.

    python benchmarks/data_speed.py --rows 20000
    python benchmarks/data_speed.py --rows 1000000 --save data-2-cores
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circumstances import describe, note_load, save  # type: ignore[import-not-found]

STAGES = {
    "audit": "audit_file: reads the JSONL, all checks, no tokenizer",
    "read": "read_dataset: the JSONL into a memory-mapped Arrow file",
    "exact": "find_exact_duplicates over whole rows",
    "near": "find_near_duplicates over whole rows, threshold 0.8",
    "split": "duplicates left out, then split_dataset by question",
    "encode": "encode_dataset of the training split, SmolLM2 tokenizer, at most 1024 tokens",
}
TOKENISERS = {
    "trl": "TRL SFTTrainer's dataset preparation, all defaults: learns from every token",
    "trl-processes": "the same with dataset_num_proc = cores",
    "trl-completion": "the same from prompt and completion: learns from the answer only",
    "sftkit": "encode_dataset: learns from the answers only",
}
DEDUPLICATORS = {
    "datasketch": "MinHash (128) and MinHashLSH at 0.8, one text after another, no verification",
    "sftkit-near": "find_near_duplicates at 0.8",
}
EXACT_SHARE = NEAR_SHARE = HARD_SHARE = 0.02
THRESHOLD = 0.8
PACKAGES = ("datasets", "pyarrow", "transformers", "tokenizers", "rensa", "trl", "datasketch")
PLAIN, EXACT, NEAR, HARD = range(4)
KINDS = ("plain", "exact", "near", "hard")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured.

    Attributes:
        rows: Rows of the file.
        compare_rows: Rows that are put to the other tools too.
        seed: Seed of the rows.
        folder: Where file and intermediate datasets are.
    """

    rows: int = 1_000_000
    compare_rows: int = 20_000
    seed: int = 0
    folder: str = ""

    @property
    def file(self) -> Path:
        """The rows."""
        return Path(self.folder) / "rows.jsonl"

    @property
    def truth(self) -> Path:
        """Which row was planted as what, and of which row."""
        return Path(self.folder) / "truth.npz"


# ---- rows with known duplicates ----


def fragments() -> list[str]:
    """Cut the catalog's texts into runs of five to nine words.

    Some forty thousand of them, so that two rows of six runs share most of their words only by
    plan.
    """
    from sftkit import catalog

    texts = list(catalog.passages("boolq"))
    for source in ("cwe", "shop"):
        texts += [
            turn["content"] for row in catalog.dataset_rows(source) for turn in row["messages"]
        ]
    draw = random.Random(0)
    found: dict[str, None] = {}
    for text in dict.fromkeys(texts):
        words = text.split()
        while len(words) >= 5:
            size = draw.randint(5, 9)
            found[" ".join(words[:size])] = None
            words = words[size:]
    return list(found)


def make_pair(pool: Sequence[str], seed: int, row: int) -> tuple[str, str]:
    """Make the question and answer of a plain row; the same arguments give the same words."""
    draw = random.Random(seed * 1_000_003 + row)
    length = min(max(draw.lognormvariate(2.9, 0.5), 4), 250)  # words of the answer
    question = " ".join(draw.choice(pool) for _ in range(draw.randint(1, 2))) + "?"
    answer: list[str] = []
    while len(answer) < length:
        answer += draw.choice(pool).split()
    return question, " ".join(answer) + "."


def shingles(text: str) -> set[tuple[str, ...]]:
    """Take three words in a row, with two marks before and after the text."""
    words = ["", "", *re.findall(r"\w+", text.casefold()), "", ""]
    return set(zip(words, words[1:], words[2:], strict=False))


def row_text(question: str, answer: str) -> str:
    """Write a row as the one text that duplicates are looked for in."""
    return f"user: {question}\nassistant: {answer}"


def similarity(one: tuple[str, str], other: tuple[str, str]) -> float:
    """Compute the Jaccard similarity of two rows' word shingles."""
    left, right = shingles(row_text(*one)), shingles(row_text(*other))
    return len(left & right) / len(left | right)


def edit(
    pair: tuple[str, str], pool: Sequence[str], draw: random.Random, kind: int
) -> tuple[str, str] | None:
    """Change words of an answer until it is a near duplicate, or only looks like one.

    Returns:
        The changed row, of Jaccard similarity from 0.8 (NEAR) or within 0.5 to 0.7 (HARD); None
        where a row is too short for that.
    """
    question, answer = pair
    words = answer.split()
    for _ in range(20):
        many = draw.randint(1, 2) if kind == NEAR else draw.randint(2, max(3, len(words) // 6))
        changed = list(words)
        for _ in range(many):
            place = draw.randrange(len(changed))
            way = draw.choice(("replace", "drop", "insert", "case"))
            if way == "drop":
                del changed[place]
            elif way == "insert":
                changed.insert(place, draw.choice(draw.choice(pool).split()))
            elif way == "case":
                changed[place] = changed[place].swapcase()
            else:
                changed[place] = draw.choice(draw.choice(pool).split())
            if not changed:
                return None
        other = (question, " ".join(changed))
        alike = similarity(pair, other)
        if (alike >= THRESHOLD and other != pair) if kind == NEAR else 0.5 <= alike <= 0.7:
            return other
    return None


def make_rows(job: Job) -> dict[str, int]:
    """Write the rows as JSONL, and which of them are planted; count the kinds."""
    import numpy as np

    pool = fragments()
    order = np.random.default_rng(job.seed)
    kinds = order.choice(
        4,
        size=job.rows,
        p=[1 - EXACT_SHARE - NEAR_SHARE - HARD_SHARE, EXACT_SHARE, NEAR_SHARE, HARD_SHARE],
    )
    # Every planted row has a plain row of its own, so pairs are the whole truth.
    plain = iter(order.permutation(np.flatnonzero(kinds == PLAIN)).tolist())
    sources = np.full(job.rows, -1, np.int64)
    with job.file.open("w", encoding="utf-8") as file:
        for row in range(job.rows):
            kind = int(kinds[row])
            pair: tuple[str, str] | None = None
            draw = random.Random(job.seed * 1_000_003 - row - 1)
            while kind != PLAIN and pair is None:
                source = next(plain)
                original = make_pair(pool, job.seed, source)
                pair = original if kind == EXACT else edit(original, pool, draw, kind)
                sources[row] = source
            question, answer = pair or make_pair(pool, job.seed, row)
            line = {
                "id": f"row-{row}",
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    np.savez(job.truth, kinds=kinds, sources=sources)
    return {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)}


def planted_pairs(job: Job, kinds: Iterable[int], *, below: int | None = None) -> set[Any]:
    """Give the planted pairs (lower row, higher row) of some kinds."""
    import numpy as np

    truth = np.load(job.truth)
    rows = np.flatnonzero(np.isin(truth["kinds"], list(kinds)))
    pairs = zip(rows.tolist(), truth["sources"][rows].tolist(), strict=True)
    limit = job.rows if below is None else below
    return {(min(pair), max(pair)) for pair in pairs if max(pair) < limit}


def judge(
    clusters: Sequence[Sequence[int]], job: Job, *, below: int | None = None
) -> dict[str, Any]:
    """Hold clusters against what was planted, pair by pair."""
    found = {
        (one, other)
        for cluster in clusters
        for place, one in enumerate(sorted(cluster))
        for other in sorted(cluster)[place + 1 :]
    }
    near = planted_pairs(job, (NEAR,), below=below)
    exact = planted_pairs(job, (EXACT,), below=below)
    hard = planted_pairs(job, (HARD,), below=below)
    return {
        "pairs": len(found),
        "recall_near": len(found & near) / len(near) if near else None,
        "recall_exact": len(found & exact) / len(exact) if exact else None,
        "precision": len(found & (near | exact)) / len(found) if found else None,
        "hard_taken": len(found & hard),
        "hard_planted": len(hard),
    }


# ---- sftkit's stages ----


def run_stages(names: Sequence[str], job: Job) -> list[dict[str, Any]]:
    """Run stages one after another in this process; what they need from disk is loaded untimed."""
    from sftkit.progress import peak_memory_bytes

    held: dict[str, Any] = {}
    results = []
    for name in names:
        stage, needed = _STAGE_FUNCTIONS[name]
        for need in needed:
            if need not in held:
                held[need] = _LOADERS[need](job)
        wall, cpu = time.perf_counter(), time.process_time()
        facts = stage(job, held)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results.append(
            {
                "stage": name,
                "rows": facts.pop("rows"),
                "seconds": wall,
                "cpu_seconds": cpu,
                "peak_bytes": peak_memory_bytes(),
                **facts,
            }
        )
        if len(names) == 1:
            _keep(name, job, held)
    return results


def _audit(job: Job, held: dict[str, Any]) -> dict[str, Any]:
    from sftkit.dataset.audit import audit_file

    audit = audit_file(str(job.file))
    findings = {f"{f.code} {f.field}".strip(): f.count for f in audit.findings}
    return {"rows": audit.row_count, "findings": findings}


def _read(job: Job, held: dict[str, Any]) -> dict[str, Any]:
    from sftkit.dataset.read import read_dataset

    held["dataset"] = read_dataset(str(job.file))
    return {"rows": len(held["dataset"])}


def _exact(job: Job, held: dict[str, Any]) -> dict[str, Any]:
    from sftkit.dataset.near import find_exact_duplicates
    from sftkit.dataset.texts import RowTexts

    held["exact"] = find_exact_duplicates(RowTexts(held["dataset"]))
    return {"rows": len(held["dataset"]), "clusters": len(held["exact"])}


def _near(job: Job, held: dict[str, Any]) -> dict[str, Any]:
    from sftkit.dataset.near import find_near_duplicates
    from sftkit.dataset.texts import RowTexts

    held["near"] = find_near_duplicates(RowTexts(held["dataset"]), threshold=THRESHOLD)
    return {"rows": len(held["dataset"]), "clusters": len(held["near"])}


def _split(job: Job, held: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from sftkit.dataset.split import split_dataset
    from sftkit.settings import DataSettings

    keep = np.ones(len(held["dataset"]), dtype=bool)
    for cluster in (*held["exact"], *held["near"]):
        keep[list(cluster[1:])] = False
    single = held["dataset"].select(np.flatnonzero(keep))
    splits = split_dataset(single, DataSettings(source=str(job.file)))
    held["train"] = splits.train
    return {"rows": len(keep), "kept": int(keep.sum()), "counts": splits.counts()}


def _encode(job: Job, held: dict[str, Any]) -> dict[str, Any]:
    from sftkit.encoding import encode_dataset

    table = encode_dataset(held["train"], held["tokenizer"], max_tokens=1024)
    return {
        "rows": len(held["train"]),
        "tokens": int(table.lengths.sum()),
        "supervised": int(table.supervised.sum()),
        "refused": len(table.refused_rows),
    }


_STAGE_FUNCTIONS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "audit": (_audit, ()),
    "read": (_read, ()),
    "exact": (_exact, ("dataset",)),
    "near": (_near, ("dataset",)),
    "split": (_split, ("dataset", "exact", "near")),
    "encode": (_encode, ("train", "tokenizer")),
}


def _keep(name: str, job: Job, held: dict[str, Any]) -> None:
    """Leave a stage's result on disk for the processes after it."""
    for part in {"read": ("dataset",), "split": ("train",)}.get(name, ()):
        held[part].save_to_disk(str(Path(job.folder) / part))
    if name in ("exact", "near"):
        clusters = json.dumps(held[name])
        (Path(job.folder) / f"{name}.json").write_text(clusters, encoding="utf-8")


def _load_dataset(name: str) -> Callable[[Job], Any]:
    def load(job: Job) -> Any:
        import datasets

        return datasets.load_from_disk(str(Path(job.folder) / name))

    return load


def _load_clusters(name: str) -> Callable[[Job], Any]:
    return lambda job: json.loads((Path(job.folder) / f"{name}.json").read_text("utf-8"))


def _load_tokenizer(job: Job) -> Any:
    from sftkit.model import load_tokenizer
    from sftkit.settings import ModelSettings

    return load_tokenizer(ModelSettings())


_LOADERS: dict[str, Callable[[Job], Any]] = {
    "dataset": _load_dataset("dataset"),
    "train": _load_dataset("train"),
    "exact": _load_clusters("exact"),
    "near": _load_clusters("near"),
    "tokenizer": _load_tokenizer,
}


# ---- beside other tools ----


def first_rows(job: Job) -> Iterator[dict[str, Any]]:
    """Read the first rows of the file, those that all tools get."""
    with job.file.open(encoding="utf-8") as file:
        for _, line in zip(range(job.compare_rows), file, strict=False):
            yield json.loads(line)


def tokenise(leg: str, job: Job) -> dict[str, Any]:
    """Tokenise the first rows with one tool; loading and imports are not timed."""
    import datasets

    datasets.disable_caching()
    tokenizer = _load_tokenizer(job)
    rows = [{"messages": row["messages"]} for row in first_rows(job)]
    if leg == "trl-completion":
        rows = [{"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in rows]
    dataset = datasets.Dataset.from_list(rows)
    prepare: Callable[[], Any]
    if leg == "sftkit":
        from sftkit.encoding import encode_dataset

        encode_dataset(dataset.select(range(10)), tokenizer, max_tokens=1024)

        def prepare() -> Any:
            return encode_dataset(dataset, tokenizer, max_tokens=1024).as_dataset()
    else:
        trainer = make_trl_trainer(dataset.select(range(10)), tokenizer, leg)

        def prepare() -> Any:
            return trainer._prepare_dataset(
                dataset, tokenizer, trainer.args, False, None, "train"
            )  # what SFTTrainer calls when it is made

    wall, cpu = time.perf_counter(), _cpu_seconds()
    prepared = prepare()
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    tokens = sum(len(ids) for ids in prepared["input_ids"])
    return {
        "leg": leg, "rows": len(prepared), "seconds": wall, "cpu_seconds": cpu, "tokens": tokens,
    }  # fmt: skip


def _cpu_seconds() -> float:
    """CPU seconds of this process and of those it started and saw end."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def make_trl_trainer(dataset: Any, tokenizer: Any, leg: str) -> Any:
    """Make a trainer around a model too small to matter."""
    import transformers
    import trl

    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    arguments = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataset_num_proc=os.cpu_count() if leg == "trl-processes" else None,
    )
    return trl.SFTTrainer(
        transformers.LlamaForCausalLM(config),
        arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
    )


def deduplicate(leg: str, job: Job) -> dict[str, Any]:
    """Look for near duplicates among the first rows with one tool."""
    texts = [row_text(*(turn["content"] for turn in row["messages"])) for row in first_rows(job)]
    wall, cpu = time.perf_counter(), time.process_time()
    if leg == "sftkit-near":
        from sftkit.dataset.near import find_near_duplicates

        clusters = find_near_duplicates(texts, threshold=THRESHOLD)
    else:
        clusters = with_datasketch(texts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    judged = judge(clusters, job, below=job.compare_rows)
    return {"leg": leg, "rows": len(texts), "seconds": wall, "cpu_seconds": cpu, **judged}


def with_datasketch(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Find pairs as datasketch's own documentation does."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    pairs = []
    for place, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([" ".join(shingle).encode() for shingle in shingles(text)])
        pairs += [(other, place) for other in index.query(sketch)]
        index.insert(place, sketch)
    return tuple(pairs)


# ---- running and reporting ----


def run_apart(kind: str, names: Sequence[str], job: Job) -> Any:
    """Run stages or a leg in a fresh process, so that its peak memory is its own."""
    command = [
        sys.executable, __file__, "--part", kind, "--names", ",".join(names),
        "--job", json.dumps(dataclasses.asdict(job)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} {', '.join(names)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_part(kind: str, names: Sequence[str], job: Job) -> Any:
    """Do the work of one fresh process."""
    if kind == "make":
        return make_rows(job)
    if kind == "stages":
        return run_stages(names, job)
    return (tokenise if kind == "tokenise" else deduplicate)(names[0], job)


def compare(kind: str, legs: Sequence[str], job: Job, rounds: int) -> list[dict[str, Any]]:
    """Let tools take turns; medians over the rounds, ratios paired within each."""
    runs: dict[str, list[dict[str, Any]]] = {leg: [] for leg in legs}
    for turn in range(1, rounds + 1):
        for leg in legs:
            runs[leg].append(run_apart(kind, [leg], job))
            rate = runs[leg][-1]["rows"] / runs[leg][-1]["seconds"]
            print(f"round {turn}, {leg}: {rate:,.0f} rows/s", file=sys.stderr)
    ours = runs[legs[-1]]
    return [
        {
            **mine[-1],
            "what": {**TOKENISERS, **DEDUPLICATORS}[leg],
            "seconds": statistics.median(run["seconds"] for run in mine),
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in mine),
            "sftkit_speed": statistics.median(
                theirs["seconds"] / own["seconds"] for theirs, own in zip(mine, ours, strict=True)
            ),
            "runs": [run["seconds"] for run in mine],
        }
        for leg, mine in runs.items()
    ]


def as_table(report: dict[str, Any]) -> str:
    """Lay the report out as Markdown."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    def stage_rows(stages: Sequence[dict[str, Any]]) -> list[str]:
        return [
            f"| {s['stage']} | {s['rows']:,} | {s['rows'] / s['seconds']:,.0f} "
            f"| {s['seconds']:.1f} | {s['cpu_seconds']:.1f} | {s['peak_bytes'] / 1e9:.2f} GB |"
            for s in stages
        ]

    head = ["| stage | rows | rows/s | wall s | CPU s | peak memory |", "|---|---|---|---|---|---|"]
    lines = [
        f"{report['job']['rows']:,} rows ({report['planted']}), each stage in a fresh process:"
    ]
    lines += ["", *head, *stage_rows(report["apart"])]
    if report["chain"]:
        total = sum(stage["seconds"] for stage in report["chain"])
        peak = max(stage["peak_bytes"] for stage in report["chain"]) / 1e9
        lines += ["", f"All in one process: {total:.0f} s, peak {peak:.2f} GB.", ""]
        lines += [*head, *stage_rows(report["chain"])]
    for name, found in report["duplicates"].items():
        lines += [
            "",
            f"{name}: recall of near pairs {share(found['recall_near'])}, of exact pairs "
            f"{share(found['recall_exact'])}, precision {share(found['precision'])}; "
            f"{found['hard_taken']} of {found['hard_planted']} hard negatives taken.",
        ]
    for kind in ("tokenise", "deduplicate"):
        if legs := report[kind]:
            lines += ["", f"| {kind}, {legs[0]['rows']:,} rows | rows/s | CPU s | sftkit is |"]
            lines[-1] += " recall | precision |" if kind == "deduplicate" else ""
            lines += ["|---" * (lines[-1].count("|") - 1) + "|"]
            for leg in legs:
                line = f"| {leg['leg']} | {leg['rows'] / leg['seconds']:,.0f} "
                line += f"| {leg['cpu_seconds']:.1f} | {leg['sftkit_speed']:.1f}× as fast |"
                if kind == "deduplicate":
                    line += f" {share(leg['recall_near'])} | {share(leg['precision'])} |"
                lines.append(line)
            lines += ["", *(f"{leg['leg']}: {leg['what']}" for leg in legs)]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    default = Job()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=default.rows)
    parser.add_argument("--compare-rows", type=int, default=default.compare_rows)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=2, help="turns of every tool; 0 compares none"
    )
    parser.add_argument(
        "--no-chain", action="store_true", help="leave out all stages in one process"
    )
    parser.add_argument("--folder", help="where rows and datasets go; kept, and made once")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--part", choices=("make", "stages", "tokenise", "deduplicate"),
                        help=argparse.SUPPRESS)  # fmt: skip
    parser.add_argument("--names", default="", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.stages.split(",")) - set(STAGES):
        parser.error(f"unknown stages {sorted(unknown)}; there are {', '.join(STAGES)}")
    if options.rows < 100:
        parser.error("--rows must be 100 or more, so that some are planted")
    return options


def measure(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Make the rows, run every stage and every comparison."""
    made = Path(job.folder) / "made.json"
    asked = {"rows": job.rows, "seed": job.seed}
    known = json.loads(made.read_text(encoding="utf-8")) if made.is_file() else {}
    if {name: known.get(name) for name in asked} != asked:
        made.unlink(missing_ok=True)
        known = {**asked, "planted": run_apart("make", [], job)}
        made.write_text(json.dumps(known), encoding="utf-8")
    planted = known["planted"]
    print(f"rows: {planted}, {job.file.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    names = options.stages.split(",")
    apart = []
    for name in names:
        apart += run_apart("stages", [name], job)
        print(f"{name}: {apart[-1]['seconds']:.1f} s", file=sys.stderr)
    chain = [] if options.no_chain else run_apart("stages", names, job)
    duplicates = {
        name: judge(_load_clusters(name)(job), job) for name in ("exact", "near") if name in names
    }
    pick = min(job.compare_rows, job.rows)
    few = dataclasses.replace(job, compare_rows=pick)
    rounds = options.rounds
    return {
        "planted": planted,
        "stages": {name: STAGES[name] for name in names},
        "apart": apart,
        "chain": chain,
        "duplicates": duplicates,
        "tokenise": compare("tokenise", list(TOKENISERS), few, rounds) if rounds else [],
        "deduplicate": compare("deduplicate", list(DEDUPLICATORS), few, rounds) if rounds else [],
    }


def main() -> int:
    """Run the benchmark, or one part of it for the parent process."""
    options = parse()
    if options.part:
        names = [name for name in options.names.split(",") if name]
        print(json.dumps(run_part(options.part, names, Job(**json.loads(options.job)))))
        return 0
    load_before = note_load()
    with tempfile.TemporaryDirectory(prefix="sftkit-data-speed-") as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(
            rows=options.rows,
            compare_rows=options.compare_rows,
            seed=options.seed,
            folder=str(folder),
        )
        measured = measure(job, options)
    shown = dataclasses.asdict(job)
    del shown["folder"]
    report = {
        **describe(PACKAGES, load_before),
        "job": shown,
        "rounds": options.rounds,
        **measured,
    }
    if options.save:
        save(report, options.save)
    print(json.dumps(report, indent=1) if options.format == "json" else as_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
