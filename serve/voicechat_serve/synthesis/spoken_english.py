"""English text as a person reads it aloud, for the cases that hibari's own normalization does not cover.

hibari reads plain numbers, ordinals, years, clock times, most dates, the common units, titles and Roman numerals, for
its own voice and, by `normalize`, for the others. The rules of this file apply before that, in the order of RULES.
"""

import re
from collections.abc import Callable
from unicodedata import name as unicode_name
from unicodedata import normalize as unicode_form

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion"}
SCALE = r"(?:\s?(hundred|thousand|million|billion|trillion)\b|\s?([kKmMbBtT]|mn|bn)\b)?"
CURRENCIES = {
    "$": ("dollar", "dollars", "cents"), "US$": ("US dollar", "US dollars", "cents"),
    "€": ("euro", "euros", "cents"), "£": ("pound", "pounds", "pence"), "¥": ("yen", "yen", ""),
    "₹": ("rupee", "rupees", "paise"), "₽": ("ruble", "rubles", "kopecks"), "₩": ("won", "won", ""),
    "₿": ("bitcoin", "bitcoins", ""), "₺": ("lira", "lira", ""), "₪": ("shekel", "shekels", ""),
    "USD": ("US dollar", "US dollars", "cents"), "EUR": ("euro", "euros", "cents"),
    "GBP": ("pound", "pounds", "pence"), "CHF": ("Swiss franc", "Swiss francs", "centimes"),
    "JPY": ("yen", "yen", ""),
}  # fmt: skip
MONEY_SIGN = "|".join(re.escape(sign) for sign in sorted(CURRENCIES, key=len, reverse=True))

UNITS = {
    "m": "meter", "km": "kilometer", "dm": "decimeter", "cm": "centimeter", "mm": "millimeter", "µm": "micrometer",
    "nm": "nanometer", "mi": "mile", "yd": "yard", "ha": "hectare", "kg": "kilogram", "g": "gram", "mg": "milligram",
    "µg": "microgram", "mcg": "microgram", "t": "ton", "lb": "pound", "lbs": "pound", "oz": "ounce", "l": "liter",
    "L": "liter", "dl": "deciliter", "cl": "centiliter", "ml": "milliliter", "mL": "milliliter", "h": "hour",
    "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "s": "second", "sec": "second", "secs": "second",
    "ms": "millisecond", "µs": "microsecond", "us": "microsecond", "ns": "nanosecond", "V": "volt", "kV": "kilovolt",
    "mV": "millivolt", "W": "watt", "mW": "milliwatt", "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt",
    "Wh": "watt hour", "kWh": "kilowatt hour", "mA": "milliamp", "mAh": "milliamp hour", "kJ": "kilojoule",
    "cal": "calorie", "kcal": "kilocalorie", "Pa": "pascal", "kPa": "kilopascal", "hPa": "hectopascal",
    "kN": "kilonewton", "dB": "decibel", "Ω": "ohm", "kΩ": "kilohm", "MΩ": "megohm", "bit": "bit", "kB": "kilobyte",
    "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte", "PB": "petabyte", "KiB": "kibibyte",
    "MiB": "mebibyte", "GiB": "gibibyte", "TiB": "tebibyte",
}  # fmt: skip
"""Units after a number, with a square or a cube, and after the slash of another unit; hibari reads "mph" and its
like."""
PLURALS = {"ft": ("foot", "feet")} | {unit: (name, f"{name}s") for unit, name in UNITS.items()}
UNIT = "|".join(re.escape(unit) for unit in sorted(PLURALS, key=len, reverse=True))
QUANTITY = re.compile(
    rf"(?<![\w.$€£])(-?{NUMBER})(\s?)({UNIT})(²|³|\^[23])?(?:/({UNIT})(²|³|\^[23])?)?(?![\w²³/])(?!['’]\w)"
)
POWERS = {"²": "square ", "^2": "square ", "³": "cubic ", "^3": "cubic "}

SYMBOLS = {
    "→": "to", "⇒": "implies", "⟶": "to", "➔": "to", "←": "from", "↔": "to and from", "⇔": "if and only if",
    "↑": "up", "↓": "down", "≈": "about", "≃": "about", "≅": "about", "≠": "is not equal to",
    "≡": "is equivalent to", "≤": "less than or equal to", "≥": "greater than or equal to", "≪": "much less than",
    "≫": "much greater than", "∞": "infinity", "√": "the square root of", "∑": "the sum of", "∏": "the product of",
    "∫": "the integral of", "∂": "partial", "∇": "del", "∈": "in", "∉": "not in", "⊂": "is a subset of",
    "⊆": "is a subset of", "∪": "union", "∩": "intersection", "∀": "for all", "∃": "there is",
    "∅": "the empty set", "¬": "not", "∧": "and", "∨": "or", "∴": "therefore", "∝": "is proportional to",
    "∘": "degrees", "‰": "per mille", "№": "number", "℃": "°C", "℉": "°F", "✓": "check", "✗": "cross",
    "©": "copyright", "†": "", "‡": "", "™": "", "®": "", "ℓ": "l",
}  # fmt: skip
DAYS = {day[:3]: day for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")}
DAY = rf"({'|'.join(DAYS)})\.?"
ABBREVIATIONS = {
    "e.g.": "for example", "E.g.": "For example",
    "I.e.": "That is", "eg.": "for example", "i.e.": "that is", "ie.": "that is", "a.k.a.": "also known as",
    "incl.": "including", "excl.": "excluding", "resp.": "respectively", "ca.": "about", "p.": "page",
    "Eq.": "Equation", "Sec.": "Section", "Ex.": "Example", "N.B.": "note", "Nr.": "number", "viz.": "namely",
    "w.r.t.": "with respect to", "max.": "maximum", "misc.": "miscellaneous", "esp.": "especially",
    "vs.": "versus", "approx.": "approximately", "est.": "established", "cf.": "compare", "Jr.": "Junior",
    "Sr.": "Senior", "tel.": "telephone", "Tel.": "Telephone", "Ph.D.": "P H D",
}  # fmt: skip
OPERATORS = {
    "<=": "less than or equal to", ">=": "greater than or equal to", "!=": "is not equal to", "==": "equals",
    "&&": "and",
}  # fmt: skip
NUMBERED = {
    "No": "Number", "no": "number", "Nos": "Numbers", "nos": "numbers", "Nr": "Number", "nr": "number",
    "Fig": "Figure", "fig": "figure", "Figs": "Figures", "Vol": "Volume", "vol": "volume", "Ch": "Chapter",
    "ch": "chapter", "pp": "pages", "Art": "Article", "art": "article", "Jan": "January", "Feb": "February",
    "Mar": "March", "Apr": "April", "Jun": "June", "Jul": "July", "Aug": "August", "Sep": "September",
    "Sept": "September", "Oct": "October", "Nov": "November", "Dec": "December",
}  # fmt: skip
"""Abbreviations before a number only: "No." can be a sentence."""
BEFORE_NUMBER = "|".join(NUMBERED)
ABBREVIATION = "|".join(re.escape(short) for short in sorted(ABBREVIATIONS, key=len, reverse=True))
SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ"

Found = re.Match[str]
Rule = tuple[re.Pattern[str], str | Callable[[Found], str]]


def money(sign: str, number: str, scale: str | None, letter: str | None) -> str:
    one, many, cents = CURRENCIES[sign]
    if scale or letter:
        return f"{number} {scale or SCALES[(letter or '').lower()]} {many}"
    whole, _, part = number.partition(".")
    if len(part) != 2 or not cents:
        return f"{number} {one if number == '1' else many}"
    name = cents.removesuffix("s") if part == "01" and cents != "pence" else cents
    amounts = [f"{whole} {one if whole == '1' else many}"] if int(whole.replace(",", "")) else []
    amounts += [f"{int(part)} {name}"] if int(part) else []
    return " and ".join(amounts) or f"0 {many}"


def quantity(found: Found) -> str:
    number, space, unit, power, per, per_power = found.groups()
    if unit == "s" and not space and not per:  # "the 1990s", "10s"
        return found[0]
    name = PLURALS[unit][0 if number.removeprefix("-") == "1" else 1]
    below = f" per {POWERS.get(per_power or '', '')}{PLURALS[per][0]}" if per else ""
    if per == "s" and per_power:
        below = " per second squared"
    return f"{number} {POWERS.get(power or '', '')}{name}{below}"


def digits(text: str) -> str:
    """Return a telephone number digit by digit, with a pause at each gap."""
    groups = [" ".join(group) for group in re.findall(r"\d+", text)]
    return ("plus " if text.startswith("+") else "") + ", ".join(groups)


def point(found: Found) -> str:
    """Return a version or an address part by part, and a decimal that ends in 0 with that 0."""
    parts = found[0].split(".")
    if len(parts) > 2:
        return f" {'dot' if len(parts) > 3 else 'point'} ".join(parts)
    return f"{parts[0]} point {' '.join(parts[1])}"


def web(found: Found) -> str:
    """Return an address as a person dictates it; for a long one only its host."""
    scheme, host, path = found["scheme"], found["host"].removeprefix("www."), (found["path"] or "").rstrip("/")
    if scheme == "mailto:":
        return dictated(host + path)
    if len(path) > 30 or re.search(r"[?#=&%]", path):
        return f"a link to {dictated(host)}"
    return dictated(host + path)


def dictated(address: str) -> str:
    for sign, name in {".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon"}.items():
        address = address.replace(sign, f" {name} ")
    return " ".join(address.split())


def superscript(found: Found) -> str:
    if found[0] in "²³":  # hibari reads these
        return found[0]
    return f" to the power of {unicode_form('NFKC', found[0]).replace('−', 'minus ')}"


def greek_letter(found: Found) -> str:
    words = re.sub(r"GREEK|SMALL|CAPITAL|LETTER|FINAL|SYMBOL|WITH.*", "", unicode_name(found[0], ""))
    return f" {'mu' if found[0] == 'µ' else words.strip().lower().replace('lamda', 'lambda')} "


def continental(found: Found) -> str:
    return f"{found[1]}{found[2].replace('.', ',')}.{found[3]}"


def day_first(found: Found) -> str:
    day, month, year = (int(part) for part in found.groups())
    return f"{year}-{month:02}-{day:02}" if month <= 12 and day <= 31 else found[0]


URL = re.compile(
    r"(?<![\w@])(?P<scheme>https?://|ftp://|mailto:|(?=www\.))(?P<host>[^\s/?#<>]*[^\s/?#<>.,;:!)\]}'\"*])"
    r"(?P<path>[/?#](?:[^\s<>]*[^\s<>.,;:!?)\]}'\"*])?)?",
    re.IGNORECASE,
)
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")

RULES: list[Rule] = [
    (URL, web),
    (EMAIL, lambda found: dictated(found[0])),
    (re.compile(r"(?<![\w.])\.(?=\d)"), "0."),
    (re.compile(r"[‘’‚‛]"), "'"),
    (re.compile(r"[“”„‟«»]"), '"'),
    (re.compile(r"(?<![Ͱ-Ͽ])μ(?=[A-Za-z])"), "µ"),  # a Greek letter instead of the micro sign
    (re.compile(rf"\b({BEFORE_NUMBER})\.\s?(?=\d)"), lambda found: f"{NUMBERED[found[1]]} "),
    (re.compile(rf"(?<![\w.])({ABBREVIATION})(?!\w)"), lambda found: ABBREVIATIONS[found[1]]),
    # A dotted initialism keeps its last dot only at the end of the text, where it also ends a sentence.
    (re.compile(r"\b((?:[A-Z]\.){2,})(?=[\s,;:]+\S)"), lambda found: found[1][:-1]),
    (re.compile(rf"\b{DAY}\s?[-–]\s?{DAY}(?!\w)"), lambda found: f"{DAYS[found[1]]} to {DAYS[found[2]]}"),
    (re.compile(r"\bC#"), "C sharp"),
    (re.compile(r"\bF#"), "F sharp"),
    (re.compile(r"−(?=\s?\d)(?<![\w)]−)(?<![\w)] −)\s?"), "-"),
    (re.compile(r"\s?−\s?"), " minus "),
    # Thousands with spaces between them, and telephone numbers.
    (re.compile(r"(?<=\d)[\u2009\u202f\u00a0](?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<![\d,.])(\d{1,3})((?: 000)+)(?![\d,.]\d)"), lambda found: found[0].replace(" ", ",")),
    (re.compile(r"(?<![\w.])\+\d[\d ()./-]{6,}\d\b"), lambda found: digits(found[0])),
    (re.compile(r"\(\d{3}\)\s?\d{3}-\d{4}\b"), lambda found: digits(found[0])),
    (re.compile(r"(?<![\w.,-])(?:1[-.])?(?:\d{3}[-.])?\d{3}[-.]\d{4}(?![\w-])"), lambda found: digits(found[0])),
    (re.compile(r"(?<![\w.,-])0\d{2,4}(?:[ -]\d{2,4}){1,3}(?![\w-])"), lambda found: digits(found[0])),
    (re.compile(r"(?<![\w.,:/-])0\d+(?![\w.,:/-])"), lambda found: " ".join(found[0])),
    # Dates and times that hibari does not read.
    (re.compile(r"(?<![\w-])(\d\d)-(\d\d)-((?:19|20)\d\d)(?![\w-])"), r"\1/\2/\3"),
    (re.compile(r"(?<![\d.])(\d{1,2})\.(\d{1,2})\.((?:19|20)\d\d)(?!\d)"), day_first),
    (re.compile(r"(?<![\w/])((?:19|20)\d\d)/(\d{2})/(\d{2})(?![\w/])"), r"\1-\2-\3"),
    (re.compile(r"(?<![\w/])(24/7|50/50)(?![\w/])"), lambda found: found[0].replace("/", " ")),
    (re.compile(r"(?<![\d:])(\d{1,2}:\d{2})\s?[-–]\s?(?=\d{1,2}:\d{2})"), r"\1 to "),
    (re.compile(r"(?<=\d)\s?([ap])\.?m\.?\s?[-–]\s?(?=\d)", re.IGNORECASE), r"\1m to "),
    (re.compile(r"(?<![\w:.])(\d+):(\d)(?![\d:.]|\s?[ap]m)"), r"\1 to \2"),
    # Money. A decimal comma, and thousands with points before it.
    (re.compile(r"(?<![\w,.])(\d{1,3})((?:\.\d{3})+),(\d\d)(?![\w,])"), continental),
    (re.compile(r"(?<![\w,.])(\d+),(\d{1,2})(?![\d,])"), r"\1.\2"),
    (
        re.compile(rf"(?<!\w)({MONEY_SIGN})\s?({NUMBER})\s?[-–]\s?(?:{MONEY_SIGN})?({NUMBER}){SCALE}(?![\w.]\d)"),
        lambda found: f"{found[2]} to {money(found[1], *found.groups()[2:])}",
    ),
    (re.compile(rf"(?<!\w)({MONEY_SIGN})\s?({NUMBER}){SCALE}(?!\w)"), lambda found: money(*found.groups())),
    (
        re.compile(rf"(?<![\w.])({NUMBER}){SCALE}\s?({MONEY_SIGN})(?!\w)"),
        lambda found: money(found[4], found[1], found[2], found[3]),
    ),
    # Numbers with their units, powers and scales.
    (
        re.compile(rf"\b(dollars?|euros?|pounds?|cents)/({UNIT})(?!\w)"),
        lambda found: f"{found[1]} per {PLURALS[found[2]][0]}",
    ),
    (re.compile(r"(?<=[\w%])/(second|minute|hour|day|week|month|year|night|person)\b"), r" per \1"),
    (re.compile(rf"({NUMBER})\s?[-–]\s?(?=(?:{NUMBER})\s?(?:%|°|(?:{UNIT})(?!\w)))"), r"\1 to "),
    (QUANTITY, quantity),
    (re.compile(r"(?<=\d)\s?°\s?K\b"), " kelvin"),
    (re.compile(r"(\d)([½¼¾])"), r"\1 and \2"),
    (re.compile(r"(?<=\d) (?=[1-9]/\d{1,2}\b)"), " and "),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)k\b"), r"\1 thousand"),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)M\b"), r"\1 million"),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)\b"), r"\1 times 10 to the power of \2"),
    (re.compile(r"(?<![\w.])(\d+)x(?= (?:as|the|\w+er|more|less|better)\b)"), r"\1 times"),
    (re.compile(r"(feet|foot) (\d+) in\b"), r"\1 \2 inches"),
    (re.compile(r"(?<![\w.])(\d+)(?:x|×| x )(\d+)(?!\w)"), r"\1 by \2"),
    (re.compile(r"(?<![\w'])(\d{1,2})['′]\s?(\d{1,2})(?:\"|″|'')"), r"\1 foot \2"),
    (re.compile(r"(?<=\w)\^2\b"), " squared"),
    (re.compile(r"(?<=\w)\^3\b"), " cubed"),
    (re.compile(r"\^\(?-(?=\w)"), " to the power of minus "),
    (re.compile(r"power of -"), "power of minus "),
    (re.compile(rf"[{SUPERSCRIPTS}]+"), superscript),
    (re.compile(r"[₀-₉]+"), lambda found: unicode_form("NFKC", found[0])),
    (re.compile(r"[~≈]\s?(?=\d)"), "about "),
    (re.compile(r"\b[vV](?=\d+\.\d)"), "version "),
    (re.compile(r"(?<![\w.])\d+(?:\.\d+){2,}(?!\w)|(?<![\w.,])\d+\.\d*0(?!\w|\.\d|\s?%)"), point),
    # Signs between words.
    (re.compile(r"(?<!\S)<3(?!\S)"), "heart"),
    (re.compile(r"[-=]>|<=|>=|!=|==|&&"), lambda found: f" {OPERATORS.get(found[0], 'to')} "),
    (re.compile(r"(?<=[A-Za-z]{2})\.(?=[a-z]{2,}\b)"), " dot "),
    (re.compile(r"(?<![\w.])[~.]{0,2}(?:/[\w.-]+){2,}/?"), lambda found: f" {dictated(found[0])} "),
    (re.compile(r"^[)\]}]+(?=.*\w)"), ""),  # hibari drops an unknown word behind a bracket that begins the text
    (re.compile(r"(?<![\w\s.])[./]+(?=\w)"), " "),  # hibari drops the word behind such a sign
    (re.compile(r"\s-{1,2}(?=[A-Za-z])"), " dash "),
    (re.compile(r"(?<=\d)\s?\*\s?(?=\d)"), " times "),
    (re.compile("|".join(map(re.escape, SYMBOLS))), lambda found: f" {SYMBOLS[found[0]]} "),
    (re.compile(r"(?<![Ͱ-Ͽ])[Ͱ-Ͽµ](?![Ͱ-Ͽ])"), greek_letter),
    (re.compile(r"[ \t]+(?=[,.;:!?](?:\s|$))|(?<=\s)[ \t]+|^\s+|\s+$"), ""),
]


def in_english(text: str) -> str:
    """Return the text with addresses, money, units, symbols, abbreviations and the like in words.

    Args:
        text: without markup (`markup.Markup`), of one line.
    """
    for pattern, words in RULES:
        text = pattern.sub(words, text)
    return text
