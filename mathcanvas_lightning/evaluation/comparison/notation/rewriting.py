"""A canonical notation for answers in plain text, Unicode or LaTeX.

Operators become single characters (≤ ∪ ± π ...), arguments of roots, powers and fractions get
braces, braces of sets become ⦃ ⦄, matrices ⟦1&2;3&4⟧, and signs of currencies words.
"""

import re
from functools import lru_cache

from mathcanvas_lightning.evaluation.comparison.notation.characters import plain_characters
from mathcanvas_lightning.evaluation.comparison.notation.chinese import arabic_numerals

MAX_CHARACTERS = 2000
"""Longer texts are not rewritten; they are no formulas."""

_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_COMMANDS = {
    "le": "≤",
    "leq": "≤",
    "leqslant": "≤",
    "ge": "≥",
    "geq": "≥",
    "geqslant": "≥",
    "lt": "<",
    "gt": ">",
    "ne": "≠",
    "neq": "≠",
    "cong": "≅",
    "sim": "∼",
    "parallel": "∥",
    "perp": "⊥",
    "approx": "≈",
    "simeq": "≈",
    "doteq": "≈",
    "in": "∈",
    "cup": "∪",
    "cap": "∩",
    "setminus": "∖",
    "backslash": "∖",
    "infty": "∞",
    "infin": "∞",
    "pm": "±",
    "mp": "∓",
    "times": "*",
    "cdot": "*",
    "ast": "*",
    "div": "/",
    "colon": ":",
    "emptyset": "∅",
    "varnothing": "∅",
    "angle": "∠",
    "measuredangle": "∠",
    "triangle": "△",
    "degree": "°",
    "degrees": "°",
    "langle": "⟨",
    "rangle": "⟩",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "ldots": "...",
    "dots": "...",
    "cdots": "...",
    "prime": "'",
    "wedge": " and ",
    "land": " and ",
    "vee": " or ",
    "lor": " or ",
    "lg": r"\log ",
    "lbrace": "⦃",
    "rbrace": "⦄",
    "lbrack": "[",
    "rbrack": "]",
    "R": "ℝ",
    "euro": "€",
    "pounds": "£",
    "yen": "¥",
    "imath": "i",
    "jmath": "j",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "varepsilon": "ε",
    "zeta": "ζ",
    "eta": "η",
    "theta": "θ",
    "vartheta": "θ",
    "kappa": "κ",
    "lambda": "λ",
    "mu": "μ",
    "nu": "ν",
    "xi": "ξ",
    "pi": "π",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "phi": "φ",
    "varphi": "φ",
    "chi": "χ",
    "psi": "ψ",
    "omega": "ω",
    "Gamma": "Γ",
    "Delta": "Δ",
    "Theta": "Θ",
    "Lambda": "Λ",
    "Sigma": "Σ",
    "Phi": "Φ",
    "Psi": "Ψ",
    "Omega": "Ω",
}
FUNCTIONS = ("arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp sqrt").split()
"""Names that mean functions, with or without a backslash."""
_GREEK_WORDS = "alpha beta gamma theta lambda omega sigma phi pi infty".split()
_TEXT = re.compile(
    r"\\(?:text(?:normal|bf|it|rm|sf|tt)?|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|hbox"
    r"|operatorname|boxed|fbox|unit|underline)\*?\s*(?=\{)"
)
_AMOUNT = r"([-+]?\s*\d[\d,. ]*(?<=\d)(?:\s+(?:thousand|million|billion|trillion))?)"
_CURRENCIES = {
    r"(?:US)?\$": "dollars", "USD": "dollars", r"Rs\.?": "rupees", "₹": "rupees",
    "€": "euros", "£": "GBP", "¥": "yensign",
}  # fmt: skip


_SHORT_SCALES = {"K": "thousand", "M": "million", "B": "billion"}


def _compiled(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_LATEX = _compiled(
    (r"\\\\(?:\[[^\]]{1,8}\])?", " ␤ "),
    (r"(?<=\d)\\[,! ](?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3})", ""),
    (r"\{,\}", ","),
    (r"\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
    (
        r"\\(?:begin|end)\{(?:aligned|cases|gathered|align\*?|split)\}",
        " ",
    ),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\text\s*\{\s*([()\[\],])\s*\}", r"\1"),
    (r"\\mathbb\s*\{?\s*([RZNQC])\s*\}?", r"\\mathbb{\1}"),
    (r"\\\{", "⦃"),
    (r"\\\}", "⦄"),
    (r"(?<=[\])}Rℝ])\s*\\\s*(?=\s\\?\{)", r"\\setminus "),
    (r"\\[()\[\]]", " "),
    (r"\\[,;:!> ]|~|\\q?quad(?![A-Za-z])|\\space(?![A-Za-z])", " "),
    (r"\\%", "%"),
    (r"\\pounds(?![A-Za-z])\s*", "£"),
    (r"\\euro(?![A-Za-z])\s*", "€"),
    (r"\\[#&_]", " "),
    (
        r"\^\s*(?:\{\s*(?:\\circ|\\(?:mathrm|text)\{o\}|o)\s*\}|(?:\\circ|o)(?![A-Za-z]))",
        "°",
    ),
)
_SYMBOLS = _compiled(
    (r"\*\*", "^"),
    (r"(?<![\d/.])(\d+)/(\d+)\s+(?=π|\\sqrt)", r"\\frac{\1}{\2}"),
    (r"(\d+(?:\.\d+)?)\s*%\s+of\s+(?=\d+\s*$)", r"\1/100*"),
    (r"(?<=[\dA-Za-z)])\s+(?:raised )?to the power (?:of )?(?=[\dA-Za-z(])", "^"),
    (r"(?<![A-Za-z])([\dA-Za-z])\s+squared\b", r"\1^2"),
    (r"(?<![A-Za-z])([\dA-Za-z])\s+cubed\b", r"\1^3"),
    (r"(?<=\d)\s+(?:times (?:the )?)?(?:square )?root (?:of )?(?=\d)", r"\\sqrt "),
    (r"(?<=[A-Z])\s*//\s*(?=[A-Z])", "∥"),
    (r"(?<=[A-Z])\s*∽\s*(?=[△A-Z])", "∼"),
    (r"(?<![A-Za-z])[Ii]nfinity(?![A-Za-z])", "∞"),
    (
        r"(?<=\d)\s*(?:R|rem\.?|remainder|余(?:数[是为])?|\.{3,})\s*(?=\d)|(?<=\d)\s+r\s+(?=\d)",
        " remainder ",
    ),
    (r"\\frac\s*\{\s*d\s*([a-z])\s*\}\s*\{\s*d\s*[a-z]\s*\}", r"\1'"),
    (r"\b[Hh]alf (?:of )?an? (?=[a-z])", "1/2 "),
    (r"\b[Aa]n? ([a-z]+) and a half\b", r"1.5 \1"),
    (r"(?<=[\d}])\s+of an? (?=[a-z]+\s*$)", " "),
    (r"\b[Nn]egative\s(?=[\d√\\])", "-"),
    (r"(?<![A-Za-z\d])([xy])([12])(?=\s*=)", r"\1_{\2}"),
    (r"<=|=<|≦", "≤"),
    (r">=|≧", "≥"),
    (r"!=|<>", "≠"),
    (r"~=|≃|≒", "≈"),
    (r"\+\s*/\s*-|\+-|\b[Pp]lus or minus\s+", "±"),
    (r"\b[Tt]he (?=(?:positive |principal )?(?:square|cube|\w+th) root of )", ""),
    (r"\b(?:positive |principal )?[Ss]quare root of\s+", r"\\sqrt "),
    (r"\b[Cc]ube root of\s+", r"\\sqrt[3]"),
    (r"\b[Ff]ourth root of\s+", r"\\sqrt[4]"),
    (r"\b(\d)th root of\s+", r"\\sqrt[\1]"),
    (r"\\(?:hat|vec|overrightarrow|boldsymbol)\s*\{?\s*([ijk])(?![A-Za-z])\s*\}?", r"\1"),
    (rf"(?<![\\A-Za-z])({'|'.join(FUNCTIONS)})(?![A-Za-z])", r"\\\1"),
    (r"(?<![\\A-Za-z])[Tt]riangle\s+(?=[A-Z]{3}(?![A-Za-z]))", "△"),
    (r"(?<![\\A-Za-z])[Aa]ngle\s+(?=[A-Z]{1,3}(?![A-Za-z]))", "∠"),
    (r"(?<![\\A-Za-z])(gcd|lcm|max|min)(?=\s*\()", r"\\\1"),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)|(?<=\d)\s+[xX]\s+(?=\d)", "*"),
    (r"(?<=[\d)\]])\s+[uU]\s+(?=[(\[])|(?<=[)\]])\s*U\s*(?=[(\[])", "∪"),
    (r"\s*(?:和|与|以及|且)\s*", " and "),
    (r"\s*(?:或者|或)\s*", " or "),
    (r"(?<=\d)\s*\\sec(?=\s*$|\s*[,;])", " sec"),
    (r"␤", "; "),
    # ]0,1[ is (0,1), [0,1[ is [0,1)
    (r"(?:^|(?<=[∪∩∈=\s]))\]([^\[\]()]+[,;][^\[\]()]+)(?=[\[\]])", r"(\1"),
    (r"(?:^|(?<=[∪∩∈=\s]))([(\[])([^\[\]()]+[,;][^\[\]()]+)\[", r"\1\2)"),
    (r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])|(?<=\d)\^\{?(?:st|nd|rd|th)\}?(?![A-Za-z])", ""),
)
_SPACES = _compiled(
    (r"\s+", " "),
    # A space between letters or digits has a meaning: "1 1/2" is not "11/2". So does a space
    # before a letter: "\\sqrt{3} m" is a length in metres, and after a comma: "100, 200" is a list.
    (r"(?<![0-9A-Za-z%°)}\]⦄,πΩ'\"]) | (?![0-9A-Za-z%°\\μΩ'\"])", ""),
    (r" (?=\\)", ""),
)


@lru_cache(maxsize=4096)
def canonical(answer: str) -> str:
    r"""Rewrites an answer in canonical form: `\dfrac12 \,\text{cm}` becomes `\frac{1}{2} cm`.

    Args:
        answer: An answer in plain text or LaTeX.

    Returns:
        The answer on one line, without dollars, layout commands and meaningless spaces.
    """
    if _PLAIN_NUMBER.fullmatch(answer):
        return answer
    text = arabic_numerals(plain_characters(answer))
    if len(text) > MAX_CHARACTERS:
        return " ".join(text.split())
    text = _replaced(text, _LATEX)
    text = _without_dollars(text)
    text = re.sub(
        r"\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[^{}]*\})?(.*?)\\end\{\1\}", _matrix, text
    )
    text = re.sub(r"\|\s*(⟦[^⟦⟧]*⟧)\s*\|", r"det\1", text)
    text = re.sub(r"([(\[])\s*(⟦[^⟦⟧]*⟧)\s*([)\]])", r"\2", text)
    text = re.sub(r"\\([A-Za-z]+)\s*", _command, text)
    text = _replaced(_without_text_commands(text), _SYMBOLS)
    for word in _GREEK_WORDS:
        if word in text:
            text = re.sub(rf"(?<![\\A-Za-z]){word}(?![A-Za-z])", _COMMANDS[word], text)
    text = _replaced(_sets(_with_braces(text)), _SPACES)
    return text.strip().rstrip(".;,") if not text.strip().endswith("...") else text.strip()


def partner(text: str, start: int) -> int:
    """Finds the bracket that closes the one at `start`; any kind may close any other.

    Args:
        text: A text.
        start: Position of an opening bracket.

    Returns:
        The position of its partner, or -1.
    """
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "([{⦃⟨⟦":
            depth += 1
        elif text[position] in ")]}⦄⟩⟧":
            depth -= 1
            if depth == 0:
                return position
    return -1


def _replaced(text: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_dollars(text: str) -> str:
    r"""Removes the dollars around formulas, and writes amounts as "5 dollars".

    A dollar is a currency if it is escaped, or a number but no second dollar follows.
    """
    text = text.replace("$$", " ").replace(r"\$", "\0")
    text = re.sub(
        r"([$\0]\s*\d[\d.]*)\s?([kKMB])(?![A-Za-z])",
        lambda found: f"{found[1]} {_SHORT_SCALES[found[2].upper()]}",
        text,
    )
    text = re.sub(r"\$([^$]*)\$(?!\d)", r" \1 ", text).replace("\0", "$")
    for sign, name in _CURRENCIES.items():
        text = re.sub(rf"([-+]?)\s*{sign}\s*{_AMOUNT}", rf" \1\2 {name} ", text)
        text = re.sub(rf"(\d)\s*{sign}(?![A-Za-z])", rf"\1 {name} ", text)
    text = re.sub(
        r"(dollars|euros|GBP|yuan|rupees)\s+(?:dollars|USD|euros?|EUR|pounds|CNY|RMB|yuan)\b",
        r"\1",
        text,
    )
    return text.replace("$", " ")


def _without_text_commands(text: str) -> str:
    r"""Replaces \\text{...} and its like by their content."""
    while found := _TEXT.search(text):
        end = partner(text, found.end())
        if end < 0:
            return text
        text = f"{text[: found.start()]} {text[found.end() + 1 : end]} {text[end + 1 :]}"
    return text


def _matrix(match: re.Match[str]) -> str:
    rows = [row for row in re.split(r"␤|;", match[2].replace(r"\hline", "")) if row.strip()]
    name = "det" if match[1] == "vmatrix" else ""
    cells = ["&".join(cell.strip() for cell in row.split("&")) for row in rows]
    return f" {name}⟦{';'.join(cells)}⟧"


def _command(match: re.Match[str]) -> str:
    sign = _COMMANDS.get(match[1])
    if sign is None:
        return match[0]
    # "\\pi r" has a space that ends the command; "\\le 2" too.
    return sign + (" " if sign in ("π", "Ω", "°") and match[0][-1].isspace() else "")


def _with_braces(text: str) -> str:
    """Puts braces around the arguments of roots, powers, subscripts, fractions."""
    found = re.search(r"\\(frac|binom|sqrt)(?![A-Za-z])\s*|[\^_]\s*", text)
    if found is None:
        return text
    end = found.end()
    head = text[: found.start()] + found[0].strip()
    if found[1] == "sqrt" and text[end : end + 1] == "[" and (index := partner(text, end)) > 0:
        head, end = head + text[end : index + 1], index + 1
    for _ in range(2 if found[1] in ("frac", "binom") else 1):
        argument, end = _argument(text, end, is_fraction=found[1] in ("frac", "binom"))
        head += f"{{{_with_braces(argument)}}}"
    return head + _with_braces(text[end:])


def _argument(text: str, start: int, *, is_fraction: bool) -> tuple[str, int]:
    r"""The argument at `start`, and its end: `{..}`, a number, a command, or one character."""
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] in ("{", "(") and not (is_fraction and text[start] == "("):
        end = partner(text, start)
        if end > 0:
            return text[start + 1 : end].strip(), end + 1
    command = r"\\[A-Za-z]+(?:\{[^{}]*\})*"
    pattern = rf"\d|{command}|." if is_fraction else rf"[-+]?(?:\d+(?:\.\d+)?|{command}|[^\s,;)])"
    found = re.compile(pattern).match(text, start)
    return (found[0], found.end()) if found else ("", start)


def _sets(text: str) -> str:
    """Turns braces of sets into ⦃ ⦄, and removes braces that only group."""
    position = 0
    while (start := text.find("{", position)) >= 0:
        position = start + 1
        end = partner(text, start)
        if end < 0 or re.search(r"[\\A-Za-z^_}\]]$", text[:start]):
            continue
        inner = text[start + 1 : end]
        is_joined = re.search("[∪∩∖]", text[max(start - 2, 0) : start] + text[end + 1 : end + 3])
        is_set = not inner.strip() or is_joined or re.search("[,;:|]", inner)
        left, right = ("⦃", "⦄") if is_set else ("", "")
        text = f"{text[:start]}{left}{inner}{right}{text[end + 1 :]}"
        position = start
    text = re.sub(r"⦃\s*⦄", "∅", text)
    return re.sub(
        r"\\mathbb\{([RZNQC])\}",
        lambda name: dict(zip("RZNQC", "ℝℤℕℚℂ", strict=True))[name[1]],
        text,
    )
