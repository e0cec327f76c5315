"""What a gateway talks to, on loopback: a model's server and a service for messages, and what both were told.

``stand_ins.py PORT`` speaks OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat),
streamed as OpenClaw asks for them, and takes the JSON that Apprise's json:// posts to /inbox. GET / gives all
of it back. The model has no mind of its own: what it answers follows from the newest message, by the rules in
`reply`.
"""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLD = {"model": [], "inbox": []}
LOCK = threading.Lock()
KEY = re.compile(r"key of this run is (\w+)")


def text_of(message):
    """Return a message's text, which may come in parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def call_of(tool, arguments):
    """Call a tool of this line's, as OpenClaw wants it: what its catalogue has is called by tool_call."""
    return {"tool_calls": [("tool_call", {"id": f"hotline__{tool}", "args": arguments})]}


def reply(messages):
    """Return the assistant's message: a question in a block, a call of a tool, or words."""
    newest = messages[-1]
    text = text_of(newest)
    if newest["role"] == "tool":
        return {"content": f"The tool said: {text}"}
    told = "\n".join(text_of(message) for message in messages if message["role"] == "user")
    if "Draft an instruction" in text:
        return {"content": '{"steps": ["Delete the old backups", "Keep the newest"]}'}
    if "by the tool" in text:
        asked = {"question": "May the old backups go?", "context": "12 GB, by the tool", "wait_minutes": 5}
        return call_of("ask_by_voice", asked)
    if "hotline-health" in text:
        return call_of("line_health", {})
    if "by the block" in text:
        key = KEY.findall(told)[-1]
        asked = {"question": "May the old backups go?", "context": "12 GB, by the block"}
        return {"content": f"I looked.\n\n[[hotline:ask {key}]]\n{json.dumps(asked)}\n[[hotline:end]]"}
    return {"content": f"I was told: {text}"}


def chunks(message):
    """Yield what a stream of one answer is made of."""
    yield {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    for place, (name, arguments) in enumerate(message.get("tool_calls", [])):
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"index": place, "id": f"call_{place}", "type": "function", "function": function}
        yield {"delta": {"tool_calls": [call]}, "finish_reason": None}
    if "content" in message:
        yield {"delta": {"content": message["content"]}, "finish_reason": None}
    yield {"delta": {}, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}


class StandIns(BaseHTTPRequestHandler):
    def do_GET(self):
        with LOCK:
            body = json.dumps(TOLD).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        to_model = self.path == "/v1/chat/completions"
        with LOCK:
            TOLD["model" if to_model else "inbox"].append(
                said | {"authorization": self.headers.get("Authorization")}
            )
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if to_model else "application/json")
        self.end_headers()
        if not to_model:
            self.wfile.write(b"{}")
            return
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": said["model"]}
        for chunk in chunks(reply(said["messages"])):
            self.wfile.write(
                b"data: " + json.dumps(head | {"choices": [{"index": 0} | chunk]}).encode() + b"\n\n"
            )
        usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
        self.wfile.write(
            b"data: " + json.dumps(head | {"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        )

    def log_message(self, *_):
        """Say nothing."""


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), StandIns).serve_forever()
