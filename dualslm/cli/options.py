"""Options that several verbs share, and the model that they name: embedded, trained adapters, or any two parts."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualslm.cli.encoding import is_unicode
from dualslm.errors import DualSLMError, for_json, new_console, one_line, visible

if TYPE_CHECKING:
    from dualslm.conversation import Conversation, Speech
    from dualslm.inference.describe import Questions
    from dualslm.model.dualslm import DualSLM
    from dualslm.model.generation import GenerationSettings


def print_json(value: Any, indent: int | None = None) -> None:
    """Prints a result as JSON; escaped where standard output cannot show every character, so that it stays true."""
    if is_unicode():
        print(for_json(value, indent), flush=True)
    else:
        print(visible(json.dumps(value, indent=indent)), flush=True)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a model and its system text."""
    add = parser.add_argument
    add("--system", metavar="TEXT", help="system text of the conversation")
    add("--model", metavar="PATH_OR_ID", help="trained adapters, or pocket (default: the embedded tiny model)")
    add("--encoder", metavar="PATH_OR_ID", help="speech encoder; without --model, with untrained adapters")
    add("--llm", metavar="PATH_OR_ID", help="chat LLM; without --model, with untrained adapters")
    add(
        "--device",
        choices=["cpu", "cuda"],
        help="the GPU where there is one, unless given; the embedded model: the CPU",
    )
    add(
        "--verify", action="store_true", help="compare every byte of encoder and LLM with what the adapters learnt from"
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Adds the options of how a reply is drawn."""
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=256, metavar="N", help="longest reply")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, takes the likeliest token")
    add("--seed", type=int, metavar="N", help="the same replies again at a temperature above 0")


def generation_of(args: argparse.Namespace, model: DualSLM) -> GenerationSettings:
    """How replies are drawn: as the checkpoint says, and as the options of `add_generation` do."""
    return model.generation.changed(max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)


def add_any_sound(parser: argparse.ArgumentParser) -> None:
    """Adds the option that answers recordings in which nobody speaks."""
    # for singing, laughter or animals, which the detector may take for noise
    about = "answer recordings without speech too, instead of saying so"
    parser.add_argument("--any-sound", action="store_true", help=about)


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Adds the option that spreads the work over a Ray cluster."""
    about = "do it on a Ray cluster, which does again what dies: HOST:PORT, auto or local (needs dualslm[ray])"
    parser.add_argument("--ray", metavar="ADDRESS", help=about)


def add_llama_cpp(parser: argparse.ArgumentParser) -> None:
    """Adds the option that lets llama.cpp run the LLM."""
    about = "let llama.cpp run the LLM, which must be a GGUF file: several times as quick on a CPU"
    parser.add_argument("--llama-cpp", action="store_true", help=about)


def check_one_engine(args: argparse.Namespace) -> None:
    """Refuses options of two ways to run the LLM."""
    given = [
        f"--{name.replace('_', '-')}" for name in ("llama_cpp", "vllm", "cuda_graphs") if getattr(args, name, None)
    ]
    if len(given) > 1:
        raise DualSLMError("the LLM runs in one way only", got=" and ".join(given), do="give one of them")


def add_cuda_graphs(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Adds the option that decodes with CUDA graphs.

    Args:
        parser: parser of a verb.
        when: addition to the help, for a verb that uses them at times only.
    """
    # not the default: the first replies are slow, which only long use pays back
    about = f"decode with CUDA graphs: quicker tokens on a GPU, after a slow start{when}"
    parser.add_argument("--cuda-graphs", action="store_true", help=about)
    add_old_name(parser, "--capture", "--cuda-graphs", nargs=0, const=True)


def add_old_name(parser: argparse.ArgumentParser, old: str, new: str, **settings: Any) -> None:
    """Accepts an option under its former name too, which is not in the help.

    Args:
        parser: parser that has the option already.
        old: former name, for example --capture.
        new: present name.
        **settings: of `add_argument`; `nargs=0, const=True` for an option without a value.
    """
    # the default is the present option's: a second one here could set it back
    settings |= {"dest": new.lstrip("-").replace("-", "_"), "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument(old, action=_OldName, new=new, **settings)


class _OldName(argparse.Action):
    """Stores a value as the present option would, and prints a line about that option's name."""

    def __init__(self, *args: Any, new: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        # on standard error, because a reply on standard output may be read by another program
        print(f"dualslm: warning: {option_string} is now called {self.new}", file=sys.stderr)
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


def embedded(args: argparse.Namespace) -> bool:
    """Whether the options name the embedded model."""
    return args.model is None and args.llm is None


def new_conversation(args: argparse.Namespace) -> Conversation:
    """An empty conversation; the embedded LLM gets the system text that it was trained with, unless one is given."""
    from dualslm.conversation import Conversation
    from dualslm.tiny.world import LISTEN

    return Conversation(LISTEN if embedded(args) and args.system is None else args.system)


def questions_of(args: argparse.Namespace) -> Questions:
    """The questions by which the model is asked for words and attributes."""
    from dualslm.inference.describe import ASKED
    from dualslm.tiny.questions import ASKED as TINY

    # adapters answer reliably only in the words that they were trained with
    return TINY if embedded(args) else ASKED


def tone_of(words: str, *, in_made_world: bool) -> Speech:
    """A tone in words.

    Args:
        words: a description of a voice, such as "sad, slow".
        in_made_world: whether the embedded model hears it, which knows the words of its own styles alone.

    Raises:
        DualSLMError: the embedded model knows none of the words.
    """
    from dualslm.conversation import Speech
    from dualslm.tiny.style import ATTRIBUTES

    known = [value for values in ATTRIBUTES.values() for value in values]
    if in_made_world and not any(value in words.lower().replace(",", " ").split() for value in known):
        raise DualSLMError("unknown tone", got=repr(words), do=f"name a recording, or use any of {', '.join(known)}")
    return Speech(caption=words)


def context_of(args: argparse.Namespace) -> int | None:
    """Positions that prompt and reply may take together; None for the LLM's own limit."""
    from dualslm.tiny import CONTEXT

    # the embedded LLM was trained with short conversations alone
    return CONTEXT if embedded(args) else None


def model_of(args: argparse.Namespace, *, load_llm: bool = True) -> DualSLM:
    """The model that the options name: embedded, trained, or any two parts with fresh adapters.

    Args:
        args: parsed options of `add_model`.
        load_llm: whether the LLM's weights are loaded, and not its token embeddings alone.
    """
    if args.model is None and (args.encoder is None) != (args.llm is None):
        missing = "--llm" if args.llm is None else "--encoder"
        raise DualSLMError("half a model", got=f"no {missing}", do="give both, or neither")
    fetch_parts(args)
    fetches = announce_downloads([args.model, args.encoder, args.llm])
    start_torch(progress=fetches)
    # on standard error, because standard output is for replies
    with nullcontext() if fetches else new_console(stderr=True).status("loading the model"):
        from dualslm import tiny
        from dualslm.model.dualslm import DualSLM

        if args.model is not None:
            model = DualSLM.from_pretrained(
                args.model,
                encoder=args.encoder,
                llm=args.llm,
                load_llm=load_llm,
                device=args.device,
                verify=args.verify,
            )
        elif args.encoder is None:
            model = tiny.load(load_llm=load_llm, device=args.device or "cpu", verify=args.verify)
        elif args.verify:
            do = "leave out --verify, or name trained adapters by --model"
            raise DualSLMError("nothing says which encoder and LLM these must be", got="untrained adapters", do=do)
        else:
            model = DualSLM.from_parts(encoder=args.encoder, llm=args.llm, device=args.device)
    print_limits(model)
    return model


def print_limits(model: DualSLM) -> None:
    """Says in one line what a model can and cannot understand, so that nobody takes its replies for more."""
    from dualslm import pocket, tiny

    hint = ""
    if model.limits == tiny.LIMITS and pocket.is_shipped():
        hint = "; --model pocket understands some of what they say"
    print(f"dualslm: this model {one_line(model.limits + hint)}", file=sys.stderr)


def fetch_parts(args: argparse.Namespace) -> None:
    """Fetches the pocket model's parts where the options name them."""
    from dualslm import pocket
    from dualslm.pocket.parts import resolve

    named = [args.encoder, args.llm]
    if args.model == pocket.NAME and pocket.is_shipped():
        named = [args.encoder or pocket.ENCODER, args.llm or pocket.LLM]
    # before the spinner of loading, which would run through the progress bar of a download
    for name in named:
        if name in pocket.HUB_IDS:
            resolve(name)


def announce_downloads(names: Sequence[str | None]) -> bool:
    """Says how large the models are that will be fetched from the hub; gives whether there are any.

    Args:
        names: models as the options name them; None for those that are not given.
    """
    wanted = [name for name in names if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()]
    if not wanted:  # the embedded model needs no hub, and its verbs no second of importing it
        return False
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    fetched = False
    for name in wanted:
        if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str):
            continue
        try:
            files = HfApi().model_info(name, files_metadata=True, timeout=10).siblings or []
        except Exception:  # whatever is wrong, loading the model says it in its own words
            continue
        weights = [file.size or 0 for file in files if file.rfilename.endswith(".safetensors")]
        size = sum(weights) or sum(file.size or 0 for file in files)
        line = f"dualslm: fetching {name}, {size / 1e9:.2g} GB, once, into {constants.HF_HUB_CACHE}"
        print(one_line(line), file=sys.stderr)
        fetched = True
    return fetched


def start_torch(*, progress: bool = False) -> None:
    """Before the first import of torch: chooses its threads and says so, the first line that a user sees.

    Also turns off the warnings of transformers, which would stand among our own lines, and its progress bars.

    Args:
        progress: whether the bars stay, because something large is being fetched.
    """
    if "torch" not in sys.modules:  # a program that has imported it has chosen for itself
        from dualslm.cli import threads

        print(one_line(f"dualslm: {threads.settle()}; loading PyTorch"), file=sys.stderr, flush=True)
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not progress:
        logging.disable_progress_bar()
