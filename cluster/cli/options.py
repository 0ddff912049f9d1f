"""Creates command-line options from settings. A separate module, so that it loads fast."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.workers.config import ParallelConfig
from outrider.workers.types.settings import REQUIRED, DeclaredSetting, settings_of


def host_and_port(value: str) -> str:
    """Returns the value. Raises BadParameter unless it is HOST:PORT or another gRPC address (unix:/PATH, ...)."""
    host, _, port = value.rpartition(":")
    if "/" not in value and not (host and port.isdecimal() and int(port) <= 65535):
        raise typer.BadParameter(f"must be HOST:PORT, got {value!r}")
    return value


SERVE_OPTIONS = (  # the settings of `outrider serve` that have their own option; --set sets any
    "model",
    *settings_of(ParallelConfig),
    *("replicas", "speculation", "host", "port", "http_port", "http_host", "metrics_port"),
    *settings_of(AccessSettings),
    *("cluster_key_file", "max_queue_wait_s", "max_live_requests_per_token", "max_allowed_token_ids"),
    *("write_timeout_s", "share_prefix_cache", "ray_address", "name"),
)
_FLAGS = {
    "share_prefix_cache": "--share-prefix-cache/--prefix-cache-per-token",
    "end_with_stdin": "--end-with-stdin",
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "controller": {"callback": host_and_port},
    "cluster_key_file": {"allow_dash": True},
}


def setting_options(kind: type, names: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds an option to a command for each of these settings of `kind`. Passes them as `given`; None: not given.

    Settings for secrets name a file, since a command line is visible to others.
    """
    options = [_option(settings_of(kind)[name]) for name in names]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:  # as typer calls it
            command(given={option.name: values.pop(option.name) for option in options}, **values)

        own = inspect.signature(command).parameters.items()
        offered = [option for name, one in own for option in (options if name == "given" else [one])]
        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in offered]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # what typer looks at
        run.__annotations__ = {one.name: one.annotation for one in keywords}
        return run

    return give


def _option(declared: DeclaredSetting) -> inspect.Parameter:
    """Has no default, to not override a configuration file. The settings class checks the value."""
    name, default = declared.name, declared.default
    option = typer.Option(
        _FLAGS.get(name, f"--{name.replace('_', '-')}"),
        help=declared.text,
        metavar=_choices(declared),
        show_default=False if default in (None, False, "", REQUIRED) else str(default),
        **_SPECIAL.get(name, {}),
    )
    required = default is REQUIRED
    typed = _typed(declared) if required else _typed(declared) | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=REQUIRED if required else None,
        annotation=Annotated[typed, option],
    )


def _choices(declared: DeclaredSetting) -> str | None:
    """The choices as shown in the help in place of the type, for example kl|tv."""
    setting = declared.setting
    words = [*map(str, setting.choices), *([f"{setting.least}..{setting.most}"] if setting.is_bounded else [])]
    return "|".join(words) if setting.choices else None


def _typed(declared: DeclaredSetting) -> Any:
    """The type of an option's value; str if the setting allows several types."""
    (typed, *others) = [one for one in declared.types if one is not type(None)]
    return str if others else typed
