"""`saelens-lite study`: the hallucination study, of a model or of a small world."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from saelens_lite.atomic import check_output
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_and_tokenizer, print_next
from saelens_lite.cli.study_choices import read_lists, scored
from saelens_lite.config import Above, AtLeast, AtMost
from saelens_lite.text_table import in_format

_N_NEUTRAL, _NEUTRAL_TOKENS = 16, 64

if TYPE_CHECKING:
    from saelens_lite.analyze.edits.neutral_text import NeutralText
    from saelens_lite.analyze.stats.document_split import Split
    from saelens_lite.analyze.study.answers import NextToken
    from saelens_lite.analyze.study.generation import OpenAnswer
    from saelens_lite.analyze.study.questions import Question
    from saelens_lite.analyze.study.result import StudyResult


def run(argv: Sequence[str]) -> None:
    """Latents of what the model knows, edited: does it then hallucinate, or refuse?"""
    config = configured(StudyConfig, "study", argv)
    if config.multiple_choice is not None:
        _multiple_choice(config)
        return
    if config.format == "table":
        _study(config)
        return
    with redirect_stdout(sys.stderr):
        found = _study(config)
    print(in_format(found, config.format))


def _multiple_choice(config: StudyConfig) -> None:
    """The model's scores on a file of questions with options, and nothing else."""
    if config.model is None:
        raise ValueError("study --multiple-choice needs --model, whose answers it scores")
    lists = read_lists(config.multiple_choice)
    model, tokenizer = model_and_tokenizer(config.model, device_named(config.device))
    found = scored(model, tokenizer, lists, config.choices_preset, min(config.batch_size_seqs, 16))
    print(in_format(found, config.format))


def _study(config: StudyConfig) -> StudyResult:
    """The study, told line by line."""
    from saelens_lite import __version__
    from saelens_lite.analyze.latents.density import latent_density
    from saelens_lite.analyze.pages.report_study import study_page
    from saelens_lite.analyze.stats.document_split import Split
    from saelens_lite.analyze.study.answers import NextToken, shared_first_tokens
    from saelens_lite.analyze.study.labels import label_counts, labelled
    from saelens_lite.analyze.study.questions import as_chat, with_instruction
    from saelens_lite.analyze.study.study import HallucinationStudy
    from saelens_lite.sae.any_kind import load_reader
    from saelens_lite.store.reader import ActivationStore

    given = [config.model, config.sae, config.records]
    if None in given and any([*given, config.baseline]):
        raise ValueError(
            "study --model needs --sae and --records too; without all three it makes a small world of its own"
        )
    folder, split = Path(config.output), Split(seed=config.seed)
    check_output(folder, folder=True)
    folder.mkdir(parents=True, exist_ok=True)
    if config.model is None:
        config = _in_a_small_world(config, split)
    device, records = device_named(config.device), _records(config)
    store = None if config.store is None else ActivationStore(config.store)
    sae = load_reader(config.sae, device=device)
    baseline = load_reader(config.baseline, device=device) if config.baseline else None
    model, tokenizer = model_and_tokenizer(config.model, device)
    instructed = None if config.instruction is None else with_instruction(records, config.instruction)
    if config.chat:
        how = {"template": config.chat_template, "system": config.system_prompt}
        records = as_chat(tokenizer, records, **how)
        instructed = None if instructed is None else as_chat(tokenizer, instructed, **how)
    judge = _judge(config)
    of_model = HallucinationStudy(
        model,
        tokenizer,
        sae,
        records,
        judge,
        baseline=baseline,
        hook_point=config.hook_point,
        split=split,
        position=config.position,
        generated=config.generated,
        batch_size_seqs=config.batch_size_seqs,
        keep=None if isinstance(judge, NextToken) else folder / "answers.jsonl",
    )
    if isinstance(judge, NextToken) and (shared := shared_first_tokens(tokenizer, records)):
        print(f"answers are judged by their first token: {shared}")
    if config.dry_run:
        cost = of_model.cost(n_doses=len(config.doses), n_controls=config.n_controls)
        hours = cost.hours(of_model.seconds_of_batch())
        print(
            f"about {cost.n_edits:,} edits and controls, {cost.n_batches:,} batches of answers, at most "
            f"{cost.n_passes:,} forward passes: {hours:.2f} hours at the speed of one batch now"
        )
        return
    by_share = _judge_of_labels(config) if config.label_by == "share" else None
    how = {"by": config.label_by, "n_right": config.n_right, "min_share": config.min_share}
    if config.label_only:  # the counts come first: they show why a study may not go on
        answers, labels = of_model.answers(by_share), [record.known for record in records]
        if None in labels:
            labels = labelled(records, answers.correct.tolist(), **how)
        print(label_counts(records, labels, answers))
    of_model.label(judge=by_share, **how)
    if config.label_only:
        return
    chosen, baseline = (
        None
        if of is None
        else of_model.select(
            config.n_latents,
            config.by,
            n_ablated=config.n_ablated,
            base_rates=None if store is None else latent_density(of, store).density,
            max_base_rate=config.max_base_rate,
            sae=of,
        )
        for of in (of_model.sae, of_model.baseline)
    )
    found = of_model.run(
        chosen,
        baseline=baseline,
        doses=config.doses,
        n_controls=config.n_controls,
        score=config.score,
        neutral=None if config.neutral is None else _neutral(config.neutral, tokenizer),
        modes=config.modes,
        sizes=config.sizes,
        instructed=instructed,
        seed=config.seed,
    )
    found.save(folder / "study.json")
    page = study_page(found, folder / "study.html", {"saelens-lite": __version__, **_asked(config)})
    print(found)
    print()
    print("\n".join(textwrap.fill(line, 120, break_on_hyphens=False) for line in found.summary()))
    print(f"numbers: {folder / 'study.json'}, page: {page}")
    by = next(way for way in ("causal", "separation") if way != config.by)
    same = {name: getattr(config, name) for name in ("model", "sae", "records", "hook_point")}
    print_next("study", **same, by=by)
    return found


def _asked(config: StudyConfig) -> dict[str, Any]:
    """The flags by name."""
    return {f"--{name.replace('_', '-')}": value for name, value in dataclasses.asdict(config).items()}


def _judge(config: StudyConfig) -> NextToken | OpenAnswer:
    """By the first token, or where answers are longer by their text; the words of --refusal count in both."""
    from saelens_lite.analyze.study.answers import NextToken
    from saelens_lite.analyze.study.generation import OpenAnswer
    from saelens_lite.analyze.study.judge import REFUSALS, Judge

    if config.max_new_tokens is None:
        return NextToken(config.refusal, config.options or None)
    said = tuple(rf"^\W*{re.escape(word)}\b" for word in config.refusal)
    return OpenAnswer(
        judge=Judge(refusal=(*said, *REFUSALS), until=config.until),
        max_new_tokens=config.max_new_tokens,
        n_samples=config.n_samples,
        temperature=config.temperature,
        seed=config.seed,
    )


def _judge_of_labels(config: StudyConfig) -> OpenAnswer:
    """As the study's, with several samples."""
    judge = _judge(config)
    if not hasattr(judge, "n_samples"):
        raise ValueError("--label-by share expected answers of several tokens: give --max-new-tokens")
    return dataclasses.replace(
        judge, n_samples=config.n_label_samples, temperature=config.temperature or config.label_temperature
    )


def _neutral(path: str, tokenizer: Any) -> NeutralText:
    """The first texts of a file, as many tokens of each, and their beginnings to continue."""
    import torch

    from saelens_lite.analyze.edits.neutral_text import NeutralText
    from saelens_lite.data_files import text_lines
    from saelens_lite.json_data import loads

    rows = (line for line in text_lines(path) if line.strip())
    is_json = ".json" in Path(path).name
    texts = (loads(line)["text"] if is_json else line for line in rows)
    ids = (tokenizer(text)["input_ids"] for text in texts)
    long = list(itertools.islice((row for row in ids if len(row) >= _NEUTRAL_TOKENS), _N_NEUTRAL))
    if len(long) < 2:
        raise ValueError(
            f"--neutral expected at least 2 texts of {_NEUTRAL_TOKENS} tokens, got {len(long)}: {path}"
        )
    table = torch.tensor([row[:_NEUTRAL_TOKENS] for row in long])
    return NeutralText(input_ids=table, prompts=table[:, : _NEUTRAL_TOKENS // 2])


def _records(config: StudyConfig) -> list[Question]:
    """Read and checked as a whole, before a model is loaded."""
    from saelens_lite.analyze.study.records import read_questions

    assert config.records is not None
    given = {}
    for flag, words in (("fields", "FIELD=COLUMN"), ("only", "COLUMN=VALUE")):
        pairs = [pair.partition("=") for pair in getattr(config, flag)]
        if odd := [name for name, equals, value in pairs if not (name and equals and value)]:
            raise ValueError(f"--{flag} expected {words}, got {odd[0]!r}")
        given[flag] = {name: value for name, _, value in pairs}
    return read_questions(config.records, prompt=config.prompt, complete=True, **given)


def _in_a_small_world(config: StudyConfig, split: Split) -> StudyConfig:
    """The configuration with a model, SAEs and records that are made for it."""
    from saelens_lite.cli.shared import quiet_loading
    from saelens_lite.demo.world import SMALLER, WorldConfig, make_world

    quiet_loading()
    print(
        "a small world: people of whom a model is taught some, told not to know some, and never shown the "
        "others",
        flush=True,
    )
    size: dict[str, int] = SMALLER if config.quick else {}
    if config.quick:  # fewer latents fire on fewer people
        most = {"n_controls": 20, "n_ablated": 20}
        config = dataclasses.replace(
            config, **{name: min(getattr(config, name), n) for name, n in most.items()}
        )
    world = make_world(config.output, WorldConfig(seed=config.seed, **size), split)
    print(
        f"  {len(world.known)} known people, {len(world.refused)} to refuse, {len(world.unseen)} never seen",
        flush=True,
    )
    folder = config.output
    made = {"model": f"{folder}/model", "sae": f"{folder}/sae", "baseline": f"{folder}/sae/frozen"}
    return dataclasses.replace(
        config, **made, records=f"{folder}/records.jsonl", device=config.device or "cpu"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """Find latents that tell entities the model knows from those it does not, edit them, and compare its
    answers with controls. Without --model, train a model on a small world first, which takes a few
    minutes."""

    output: str = "study"
    """Folder for study.json, and without --model for the world: model, SAE with its baseline, records."""

    quick: bool = False
    """A smaller world, for a first look: wider intervals, at most 20 controls, so that no p is
    below 0.048, and 20 latents removed."""

    model: str | None = None
    """A hub id or folder, or demo; with --sae and --records."""

    sae: str | None = None
    """Folder of an SAE of that model, ours or SAELens', or a hub repository."""

    baseline: str | None = None
    """Folder of the SAE of the same run with a frozen decoder; the difference to it is what training
    found."""

    records: str | None = None
    """JSON lines, CSV or parquet, compressed or not, each a question: prompt, entity and answer; if wanted
    relation, group, type, known, span, popularity, source and template. Without entity, the prompt stands in
    its place."""

    fields: tuple[str, ...] = ()
    """For records with other columns, FIELD=COLUMN: answer=answers entity=subject; a column of a mapping is
    answer=facts.country."""

    prompt: str | None = None
    """What prompts are made of, with columns of the records in braces: "Question: {question} Answer:"."""

    only: tuple[str, ...] = ()
    """COLUMN=VALUE: records that have it are read, the others left out."""

    refusal: tuple[str, ...] = ("unknown",)
    """Words that say that an answer is not known; of each the first token counts."""

    options: tuple[str, ...] = ()
    """Words of answers: refusal and these alone are then compared, as in --refusal No --options Yes. Without
    them a refusal has to be the likeliest of all tokens."""

    max_new_tokens: Annotated[int | None, AtLeast(1)] = None
    """Of an answer, which its text then judges: right where it holds a right answer, refused by a list of
    patterns and the words of refusal. None judges the first token alone. Answers are kept in output, so that
    an interrupted run resumes."""

    until: tuple[str, ...] = ("\n",)
    """Texts that end an answer; with --max-new-tokens."""

    n_samples: Annotated[int, AtLeast(1)] = 1
    """Answers to each question; more than one needs a temperature."""

    temperature: Annotated[float, AtLeast(0)] = 0.0
    """Of the answers; 0 takes the likeliest token."""

    chat: bool = False
    """Put prompts as turns of a chat, by the tokenizer's chat template."""

    chat_template: str | None = None
    """A chat template in the place of the tokenizer's; with --chat."""

    system_prompt: str | None = None
    """What the system turn says; with --chat."""

    label_by: Literal["answers", "share"] = "answers"
    """Where records do not say who is known: "answers" needs n_right right ones, "share" min_share of the
    answers to n_label_samples samples of each question. No right answer at all is unknown, what lies between
    is left out."""

    n_right: Annotated[int, AtLeast(1)] = 2
    """Right answers about an entity that is known, or all where it has fewer questions."""

    min_share: Annotated[float, Above(0), AtMost(1)] = 0.5
    """With --label-by share."""

    n_label_samples: Annotated[int, AtLeast(2)] = 10
    """With --label-by share."""

    label_temperature: Annotated[float, Above(0)] = 0.5
    """With --label-by share, where temperature is 0."""

    multiple_choice: str | None = None
    """A file in the form of TruthfulQA's mc_task.json: print MC0, MC1 and MC2 of --model on it, by log
    probability, beside the same with the questions hidden, and stop."""

    choices_preset: str | None = None
    """With --multiple-choice: qa, TruthfulQA's prompt of six answered questions, null, or a prompt with
    {question}; None takes qa."""

    label_only: bool = False
    """Print who is known, counted by relation, with examples, and stop."""

    dry_run: bool = False
    """Print how many forward passes and hours the study takes, and stop."""

    n_latents: Annotated[int, AtLeast(1)] = 3
    """Latents of known and of unknown entities that are clamped."""

    n_ablated: Annotated[int, AtLeast(1)] = 50
    """The most latents removed together; controls need as many others that fire, and n_controls of them."""

    by: Literal["separation", "welch_t", "causal"] = "separation"
    """What chooses latents: the difference of firing rates, of means over its standard error, or each one's
    own effect."""

    store: str | None = None
    """An activation store of text at large: latents that fire on more than max_base_rate of its rows are not
    chosen."""

    max_base_rate: Annotated[float, AtLeast(0), AtMost(1)] = 0.02
    """With --store."""

    doses: Annotated[tuple[float, ...], Above(0)] = (0.5, 1.0, 2.0)
    """Of clamps, in units of the 95 % quantile of a latent's positive activations."""

    n_controls: Annotated[int, AtLeast(1)] = 100
    """Matched random sets of latents for each edit: no p is below 1 / (n + 1)."""

    score: Literal["rates", "logits"] = "rates"
    """What is tested: rates of answers and refusals, or the difference of their logits, which tells more
    where rates are all or nothing."""

    position: Literal["last", "all", "prompt_last", "everywhere"] = "last"
    """Tokens that are edited: the entity's last or all of them, the prompt's last, or everywhere in the
    prompt."""

    generated: bool = False
    """Edit what comes behind the prompt too, token by token as it is written."""

    hook_point: str | None = None
    """Where to edit; None takes the place that the SAE was trained on."""

    batch_size_seqs: Annotated[int, AtLeast(1)] = 256
    """Prompts in a forward pass."""

    modes: tuple[Literal["mean", "steer"], ...] = ()
    """Further edits: latents set to their mean on the selecting side, and typical values added whatever a
    latent is."""

    sizes: Annotated[tuple[int, ...], AtLeast(1)] = ()
    """Further groups, the best so many latents, that are clamped and removed: 1 3 10 30 100."""

    neutral: str | None = None
    """A file of texts, plain or JSON lines with a column text: what edits do to their prediction (ΔCE, KL)
    and to how their continuations repeat themselves."""

    instruction: str | None = None
    """A rival of all edits: the prompts with this sentence before them, such as "If you are not sure, answer
    unknown."."""

    seed: int = 0
    """Of the world, the split of entities, the controls and the intervals."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """How the numbers are printed; all but table print nothing else to stdout."""

    device: str | None = None
    """cuda, mps or cpu; None: the best there is, and a CPU for the small world."""
