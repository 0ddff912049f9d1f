"""Chats with a served model by LlamaIndex, whole and streamed, completes, and has it call a tool. Prints JSON.

`python llama_index_chat.py URL MODEL`
"""

import json
import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def main() -> None:
    url, model = sys.argv[1:]

    def client(**options: Any) -> OpenAILike:
        options = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 20} | options
        seeded = {"seed": 5}
        return OpenAILike(model=model, api_base=f"{url}/v1", api_key="none", additional_kwargs=seeded, **options)

    turns = [ChatMessage(role="user", content="Write a function that adds two numbers.")]
    completing = client(is_chat_model=False, is_function_calling_model=False)
    calling = client(max_tokens=200)
    called = calling.chat_with_tools(
        [FunctionTool.from_defaults(add)], user_msg="Add 2 and 3.", tool_required=True, allow_parallel_tool_calls=False
    )
    calls = calling.get_tool_calls_from_response(called, error_on_no_tool_call=True)
    print(json.dumps({
        "chat": client().chat(turns).message.content,
        "chat_streamed": "".join(part.delta or "" for part in client().stream_chat(turns)),
        "completion": completing.complete("def add(a, b):").text,
        "completion_streamed": "".join(part.delta for part in completing.stream_complete("def add(a, b):")),
        "calls": [{"name": call.tool_name, "arguments": call.tool_kwargs} for call in calls],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
