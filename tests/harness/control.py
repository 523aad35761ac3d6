"""Have a broker's node evaluate Erlang, in a millisecond.

`rabbitmqctl eval` starts an Erlang machine for each call, which takes a second or two. This starts one, hidden from the
cluster, and keeps it: it reads expressions from its standard input, has the broker's node evaluate them, and writes the
answers. When its input ends because the tests died, it ends what they would have ended: the broker and its epmd, and
takes their folder away.
"""

from __future__ import annotations

import base64
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

# An answer that is a binary comes as it is, so that JSON needs no unescaping; any other term as ~0tp prints it.
LOOP = """
Broker = '{node}',
Answer = fun(Line) ->
    try
        {{ok, Tokens, _}} = erl_scan:string(unicode:characters_to_list(base64:decode(string:trim(Line)))),
        {{ok, Expressions}} = erl_parse:parse_exprs(Tokens),
        case rpc:call(Broker, erl_eval, exprs, [Expressions, erl_eval:new_bindings()], {patience_ms}) of
            {{value, Value, _}} -> {{ok, Value}};
            Failure -> {{error, Failure}}
        end
    catch _:Problem -> {{error, Problem}} end
end,
Text = fun(Value) when is_binary(Value) -> Value;
          (Value) -> unicode:characters_to_binary(io_lib:format("~0tp", [Value])) end,
Loop = fun Loop() ->
    case io:get_line("") of
        Line when is_list(Line); is_binary(Line) ->
            {{Verdict, Value}} = Answer(Line),
            io:put_chars([atom_to_list(Verdict), " ", base64:encode(Text(Value)), "\\n"]),
            Loop();
        _TheTestsAreGone ->
            rpc:call(Broker, erlang, halt, [1, [{{flush, false}}]], 2000),
            os:cmd("kill -KILL {epmd_pid}; rm -rf '{folder}'"),
            halt(0)
    end
end,
Loop().
"""


class EvaluationFailed(Exception):
    """The broker's node could not evaluate an expression; says what Erlang said."""


class Control:
    """One Erlang machine that has `node` evaluate expressions; any thread may ask."""

    PATIENCE = 60.0

    def __init__(self, *, erl: str, node: str, environ: Mapping[str, str], folder: Path, epmd_pid: int) -> None:
        self._lock = threading.Lock()
        loop = LOOP.format(node=node, epmd_pid=epmd_pid, folder=folder, patience_ms=int(self.PATIENCE * 1000))
        self._log = folder / "control.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    erl,
                    *("-noshell", "-hidden", "-boot", "no_dot_erlang", "+S", "1:1", "+B", "i"),
                    *("-sname", f"control{os.getpid()}@localhost", "-start_epmd", "false", "-dist_listen", "false"),
                    *("-kernel", "inet_dist_use_interface", "{127,0,0,1}", "-eval", loop),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                cwd=folder,
                start_new_session=True,
            )

    def eval(self, expressions: str) -> str:
        """Evaluate on the broker's node: a binary's text, or any other value as Erlang prints it.

        Raises EvaluationFailed: no Erlang, the expression failed, or there is no such node (`nodedown`).
        """
        expressions = expressions.strip().removesuffix(".") + "."
        with self._lock:
            line = self._ask(base64.b64encode(expressions.encode()) + b"\n")
        verdict, _, encoded = line.partition(b" ")
        text = base64.b64decode(encoded).decode(errors="replace")
        if verdict != b"ok":
            raise EvaluationFailed(f"{text}\nwhen asked for: {expressions}")
        return text

    def _ask(self, line: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            raise EvaluationFailed(f"the control node is gone: {self._log.read_text(errors='replace')}") from error
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self.PATIENCE + 10):
                raise EvaluationFailed(f"no answer within {self.PATIENCE + 10:g} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise EvaluationFailed(f"the control node ended: {self._log.read_text(errors='replace')}")
        return answer

    def end(self) -> None:
        """End the machine at once; the broker stays."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
