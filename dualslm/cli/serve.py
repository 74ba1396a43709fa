"""The verb `serve`. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
import os

from dualslm.cli.options import (
    add_any_sound,
    add_cuda_graphs,
    add_llama_cpp,
    add_model,
    add_old_name,
    check_one_engine,
    context_of,
    model_of,
    new_conversation,
    questions_of,
    start_torch,
)
from dualslm.errors import DualSLMError

PARSERS = ("hermes", "llama3_json", "mistral")  # those of `serve.tool_calls`, which takes long to import
POSITIVE = (
    "max_body",
    "max_memory",
    "max_audio",
    "max_speech",
    "max_turns",
    "running",
    "timeout",
    "keep",
)  # options of `serve`


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `serve`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    add_llama_cpp(parser)
    add("--vllm", metavar="URL", help="let this vLLM server run the LLM, for example http://localhost:8001/v1")
    add("--vllm-model", metavar="NAME", help="name of the LLM in vLLM (default: its first)")
    add("--name", default="dualslm", help="name of this model in requests")
    add(
        "--api-key",
        metavar="KEY",
        action="append",
        help="key that requests must bring, or several (default: those in DUALSLM_API_KEY, else no key)",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="name that clients call this server by, where it has a dot; * is any",
    )
    add("--max-body", type=int, default=32, metavar="MIB", help="longest request")
    add("--max-audio", type=float, default=120, metavar="S", help="longest recording")
    add("--max-speech", type=float, default=1800, metavar="S", help="most seconds of recordings in a request")
    add("--max-turns", type=int, default=128, metavar="N", help="most messages of a conversation")
    add("--running", type=int, default=32, metavar="N", help="requests that are answered at once")
    add("--waiting", type=int, default=128, metavar="N", help="requests that wait; one more gets status 429")
    add("--max-memory", type=int, default=1024, metavar="MIB", help="size of all requests that are being read")
    add("--timeout", type=float, default=300, metavar="S", help="longest time for one request")
    add_old_name(parser, "--patience", "--timeout", type=float)
    add(
        "--keep",
        type=int,
        default=512,
        metavar="MIB",
        help="size of the prefix cache: keys and values of earlier turns",
    )
    add(
        "--ssl-certfile", metavar="FILE", help="serve https with this certificate, which phones need for the microphone"
    )
    add("--ssl-keyfile", metavar="FILE", help="its private key (default: in the same file)")
    add(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin ask too; may be repeated",
    )
    add(
        "--ignore-tools",
        action="store_true",
        help="answer clients that always offer tools, such as Open WebUI, without calling any",
    )
    add(
        "--tool-call-parser",
        choices=PARSERS,
        help="how the LLM writes calls of tools (default: as its chat template has it)",
    )
    add("--no-page", action="store_true", help="no web page at /")
    add_any_sound(parser)
    add_cuda_graphs(parser, "; while one request is alone")
    add_model(parser)
    parser.set_defaults(verb=_serve)


def _serve(args: argparse.Namespace) -> int:
    for name in POSITIVE:
        if (value := getattr(args, name)) <= 0:
            raise DualSLMError(f"--{name.replace('_', '-')} makes no sense", got=value, do="give more than 0")
    if args.waiting < 0:
        raise DualSLMError("--waiting makes no sense", got=args.waiting, do="give 0 or more")
    if args.max_memory < 4 * args.max_body:
        do = f"give {4 * args.max_body} or more, or a smaller --max-body"
        raise DualSLMError("--max-memory is too small for --max-body", got=args.max_memory, do=do)
    check_one_engine(args)
    start_torch()
    try:
        from dualslm.serve.run import Settings, check_certificate, check_origin, listen, run
    except ModuleNotFoundError as error:
        raise DualSLMError(
            "serving needs more packages", got=f"no {error.name}", do="pip install 'dualslm[serve]'"
        ) from error
    from dualslm.serve.limits import Limits
    from dualslm.tiny import CLIPS

    limits = Limits(
        body=args.max_body * 2**20,
        audio=args.max_audio,
        speech=args.max_speech,
        turns=args.max_turns,
        running=args.running,
        waiting=args.waiting,
        timeout=args.timeout,
        any_sound=args.any_sound,
        ignore_tools=args.ignore_tools,
        tool_call_parser=args.tool_call_parser,
        memory=args.max_memory * 2**20,
    )
    settings = Settings(
        name=args.name,
        limits=limits,
        key=args.api_key or os.environ.get("DUALSLM_API_KEY", "").split(),
        # whoever names an address to listen on calls the server by that name
        hosts=[args.host, *args.allow_host],
        page=not args.no_page,
        cache_bytes=args.keep * 2**20,
        clips=CLIPS,
        certificate=args.ssl_certfile,
        private_key=args.ssl_keyfile,
        origins=tuple(map(check_origin, args.cors)),
        llama_cpp=args.llama_cpp,
        vllm=args.vllm,
        vllm_model=args.vllm_model,
        # from the environment alone: any user of the machine can read the arguments of a process
        vllm_key=os.environ.get("DUALSLM_VLLM_KEY") or None,
    )
    check_certificate(args.ssl_certfile, args.ssl_keyfile)
    # first, because loading takes long: a port in use is reported at once
    listening = listen(args.host, args.port)
    model = model_of(args, load_llm=args.vllm is None and not args.llama_cpp)
    if args.cuda_graphs:
        model.llm.enable_cuda_graphs()
    system = new_conversation(args).system
    run(model, settings, listening, questions=questions_of(args), context=context_of(args), system=system)
    return 0
