"""Common client packages against a served scout. Each test is skipped if its package is not installed."""

import asyncio
import json

import pytest
from gateway.http.served import MODEL, Served

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "What the weather will be.", "parameters": WEATHER}
TOOLS = [{"type": "function", "function": FUNCTION}]
HELLO = [{"role": "user", "content": "Write a function that adds two numbers."}]
ONE_CALL = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
SEED = 5


def is_valid(arguments: str) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(arguments), WEATHER)
    return True


def test_openai_completes_and_chats_whole_and_streamed(scout: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=scout.v1, api_key="none")

    assert [model.id for model in client.models.list()] == [MODEL]
    whole = client.completions.create(model=MODEL, prompt="def add(a, b):", max_tokens=20, seed=SEED)
    parts = client.completions.create(model=MODEL, prompt="def add(a, b):", max_tokens=20, seed=SEED, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert whole.usage.completion_tokens == 20

    asked = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 30, "seed": SEED}
    chat = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == chat.choices[0].message.content
    assert chunks[-1].usage == chat.usage or chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    assert chunks[-1].usage.completion_tokens == len(chat.choices[0].logprobs.content) == 30
    assert all(len(place.top_logprobs) == 3 for place in chat.choices[0].logprobs.content)
    openai.types.chat.ChatCompletion.model_validate(chat.model_dump(), strict=False)


def test_openai_calls_tools_whole_and_streamed_and_takes_their_results(scout: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=scout.v1, api_key="none")
    asked = {"model": MODEL, "messages": HELLO, "seed": SEED, **ONE_CALL}

    message = client.chat.completions.create(**asked).choices[0].message
    with client.chat.completions.stream(**{name: asked[name] for name in asked}) as stream:
        final = stream.get_final_completion().choices[0]

    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert is_valid(call.function.arguments)
    assert not message.content
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*HELLO, message.model_dump(exclude_none=True), result]
    options = {"max_tokens": 5, "tool_choice": "none", "extra_body": {"min_tokens": 5}}
    after = client.chat.completions.create(model=MODEL, messages=turns, tools=TOOLS, **options)
    assert after.usage.completion_tokens == 5


def test_openai_parses_structured_outputs(scout: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=scout.v1, api_key="none")
    format = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}

    answer = client.chat.completions.create(model=MODEL, messages=HELLO, response_format=format, seed=SEED)

    assert is_valid(answer.choices[0].message.content)


def test_openai_responses_whole_and_streamed(scout: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=scout.v1, api_key="none")
    tools = [{"type": "function", **FUNCTION, "strict": True}]
    seeded = {"extra_body": {"seed": SEED}}

    whole = client.responses.create(model=MODEL, input="hello", max_output_tokens=20, **seeded)
    with client.responses.stream(model=MODEL, input="hello", max_output_tokens=20, **seeded) as stream:
        streamed = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert whole.status == "incomplete"
    assert "".join(streamed) == whole.output_text
    called = client.responses.create(
        model=MODEL, input=HELLO, tools=tools, tool_choice="required", parallel_tool_calls=False, **seeded
    )
    call = next(item for item in called.output if item.type == "function_call")
    assert is_valid(call.arguments)
    turns = [*HELLO, call.model_dump(), {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    again = client.responses.create(model=MODEL, input=turns, tools=tools, tool_choice="none", max_output_tokens=5)
    assert 1 <= again.usage.output_tokens <= 5


def test_anthropic_messages_whole_and_streamed_with_tools(scout: Served) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=scout.url, api_key="none")
    seeded = {"extra_body": {"seed": SEED}}
    asked = {"model": MODEL, "max_tokens": 20, "messages": HELLO, "system": "Be brief.", **seeded}

    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 20)
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO, system="Be brief.").input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens

    tools = [{"name": "get_weather", "input_schema": WEATHER}]
    asked |= {"tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 200}
    with client.messages.stream(**asked) as stream:
        message = stream.get_final_message()
    use = message.content[-1]
    assert (message.stop_reason, use.type, use.name) == ("tool_use", "tool_use", "get_weather")
    assert is_valid(json.dumps(use.input))
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]}
    turns = [*HELLO, {"role": "assistant", "content": [block.model_dump() for block in message.content]}, result]
    after = client.messages.create(model=MODEL, max_tokens=5, messages=turns, tools=tools, tool_choice={"type": "none"})
    assert 1 <= after.usage.output_tokens <= 5


def test_errors_are_the_packages_own(scout: Served) -> None:
    openai, anthropic = pytest.importorskip("openai"), pytest.importorskip("anthropic")
    client = openai.OpenAI(base_url=scout.v1, api_key="none", max_retries=0)

    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here"):
        client.chat.completions.create(model="gpt", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=-1)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens must be"):
        anthropic.Anthropic(base_url=scout.url, api_key="none").messages.create(
            model=MODEL, messages=HELLO, max_tokens=-1
        )


def test_langchain_chats_streams_and_binds_tools(scout: Served) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(base_url=scout.v1, api_key="none", model=MODEL, seed=SEED, max_tokens=20)

    whole = model.invoke("hello")
    assert "".join(chunk.content for chunk in model.stream("hello")) == whole.content
    larger = langchain.ChatOpenAI(base_url=scout.v1, api_key="none", model=MODEL, seed=SEED, max_tokens=200)
    bound = larger.bind_tools(TOOLS, tool_choice="get_weather", parallel_tool_calls=False)
    (call,) = bound.invoke("hello").tool_calls
    assert call["name"] == "get_weather"
    assert is_valid(json.dumps(call["args"]))


def test_an_agent_of_openai_agents_uses_a_tool(scout: Served) -> None:
    agents, openai = pytest.importorskip("agents"), pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    rolls: list[int] = []

    @agents.function_tool
    def roll(sides: int) -> str:
        """Rolls a die."""
        rolls.append(sides)
        return "4"

    client = openai.AsyncOpenAI(base_url=scout.v1, api_key="none")
    settings = agents.ModelSettings(tool_choice="required", max_tokens=120, extra_body={"seed": SEED})
    agent = agents.Agent(
        name="player",
        model=agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client),
        tools=[roll],
        model_settings=settings,
        tool_use_behavior="stop_on_first_tool",
    )

    result = asyncio.run(agents.Runner.run(agent, "Roll a die.", max_turns=2))

    assert rolls
    assert result.final_output == "4"


def test_litellm_chats_and_streams(scout: Served) -> None:
    litellm = pytest.importorskip("litellm")
    asked = {"model": f"openai/{MODEL}", "api_base": scout.v1, "api_key": "none", "messages": HELLO, "seed": SEED}

    whole = litellm.completion(**asked, max_tokens=20)
    stream = litellm.completion(**asked, max_tokens=20, stream=True)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_gets_an_object(scout: Served, mode: str) -> None:
    instructor, openai = pytest.importorskip("instructor"), pytest.importorskip("openai")
    pydantic = pytest.importorskip("pydantic")
    strict = pydantic.ConfigDict(extra="forbid")
    weather = pydantic.create_model(
        "Weather", __config__=strict, city=(str, pydantic.Field(max_length=12)), days=(int, pydantic.Field(ge=0, le=9))
    )
    plain = openai.OpenAI(base_url=scout.v1, api_key="none")
    client = instructor.from_openai(plain, mode=getattr(instructor.Mode, mode))

    asked = {"model": MODEL, "messages": HELLO, "max_retries": 0, "seed": SEED, "max_tokens": 300, "temperature": 0.3}
    one_call = {"parallel_tool_calls": False} if mode == "TOOLS" else {}
    found = client.chat.completions.create(response_model=weather, **asked, **one_call)

    assert 0 <= found.days <= 9
