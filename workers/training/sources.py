"""Where scout's training text comes from: packages, licences, and which files are read. Downloads nothing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DebianSource:
    """A Debian documentation package. `pattern` is matched (re.search) against a file's path inside the package."""

    package: str
    licence: str
    pattern: str
    permissive: bool = False
    limit_mb: float = 100.0


@dataclass(frozen=True, slots=True)
class PythonSource:
    """A wheel on the Python package index, whose `.py` files are read."""

    package: str
    licence: str
    limit_mb: float = 4.0


STANDARD_LIBRARY_LICENCE = "PSF-2.0"

DEBIAN_SOURCES = (
    DebianSource("apache2-doc", "Apache-2.0", r"/manual/en/[^ ]*\.html$", permissive=True),
    DebianSource("autoconf-doc", "GFDL-1.3+", r"\.html$"),
    DebianSource("bash-doc", "GFDL-1.3+", r"bashref\.html$"),
    DebianSource("debian-faq", "GPL-2+", r"\.en\.html$|faq/[a-z-]+\.html$"),
    DebianSource("debian-handbook", "GPL-2+ or CC-BY-SA-3.0+", r"html/en-US/[^/]+\.html$"),
    DebianSource("debian-policy", "GPL-2+", r"\.html$"),
    DebianSource("debian-reference-en", "GPL-2+", r"\.en\.html$"),
    DebianSource("developers-reference", "GPL-2+", r"developers-reference/[^/]+\.html$"),
    DebianSource("git-doc", "GPL-2", r"\.html$"),
    DebianSource("info", "GPL-3+", r"\.html$"),
    DebianSource(
        "linux-doc-6.1",
        "GPL-2",
        r"Documentation/(?!translations|devicetree|ABI)[^ ]*\.rst\.gz$",
        limit_mb=8.0,
    ),
    DebianSource("maint-guide", "GPL-2+", r"\.html$"),
    DebianSource("mercurial-common", "GPL-2+", r"\.(?:txt|html)$"),
    DebianSource("perl-doc", "Artistic or GPL-1+", r"\.pod$", limit_mb=7.0),
    DebianSource("postgresql-doc-15", "PostgreSQL", r"\.html$", permissive=True),
    DebianSource("python3.11-doc", "PSF-2.0", r"/html/(?!genindex|py-modindex)[^ ]*\.html$", permissive=True),
    DebianSource("sqlite3-doc", "public domain", r"\.html$", permissive=True),
)

PYTHON_SOURCES = (
    PythonSource("aiohttp", "Apache-2.0"),
    PythonSource("astropy", "BSD-3-Clause"),
    PythonSource("attrs", "MIT"),
    PythonSource("babel", "BSD-3-Clause"),
    PythonSource("black", "MIT"),
    PythonSource("bokeh", "BSD-3-Clause"),
    PythonSource("celery", "BSD-3-Clause"),
    PythonSource("click", "BSD-3-Clause"),
    PythonSource("dask", "BSD-3-Clause"),
    PythonSource("django", "BSD-3-Clause"),
    PythonSource("docutils", "public domain and BSD-2-Clause"),
    PythonSource("fastapi", "MIT"),
    PythonSource("flask", "BSD-3-Clause"),
    PythonSource("httpx", "BSD-3-Clause"),
    PythonSource("jedi", "MIT", limit_mb=1.0),
    PythonSource("jinja2", "BSD-3-Clause"),
    PythonSource("matplotlib", "PSF-like"),
    PythonSource("more-itertools", "MIT"),
    PythonSource("mpmath", "BSD-3-Clause"),
    PythonSource("networkx", "BSD-3-Clause"),
    PythonSource("nltk", "Apache-2.0"),
    PythonSource("pandas", "BSD-3-Clause"),
    PythonSource("poetry-core", "MIT", limit_mb=1.0),
    PythonSource("pydantic", "MIT"),
    PythonSource("pygments", "BSD-2-Clause", limit_mb=1.0),
    PythonSource("requests", "Apache-2.0"),
    PythonSource("rich", "MIT"),
    PythonSource("scikit-image", "BSD-3-Clause"),
    PythonSource("scikit-learn", "BSD-3-Clause"),
    PythonSource("scipy", "BSD-3-Clause"),
    PythonSource("sphinx", "BSD-2-Clause"),
    PythonSource("sqlalchemy", "MIT"),
    PythonSource("starlette", "BSD-3-Clause"),
    PythonSource("statsmodels", "BSD-3-Clause"),
    PythonSource("sympy", "BSD-3-Clause"),
    PythonSource("tornado", "Apache-2.0"),
    PythonSource("tqdm", "MIT and MPL-2.0"),
    PythonSource("trio", "MIT or Apache-2.0"),
    PythonSource("twisted", "MIT"),
    PythonSource("urllib3", "MIT"),
    PythonSource("werkzeug", "BSD-3-Clause"),
    PythonSource("xarray", "Apache-2.0"),
)
