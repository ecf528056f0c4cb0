"""Numbers, dates, money, units and abbreviations in English words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date

from num2words import num2words

from assistant.speech.normalize import Reader, Rule, markup, words

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_MONTH_NUMBERS = {month[:3].lower(): number for number, month in enumerate(_MONTHS, 1)}
_MONTH_SHORT = "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
_MONTH = rf"(?:{'|'.join(_MONTHS)}|(?:{_MONTH_SHORT})\b\.?)"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_BEGIN = r"(?<![\w.,])"  # not inside a word or a longer number
_MINUS = r"(?:(?<![\w)])[-−])?"

# one, many, a hundredth, hundredths
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"), "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"), "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"), "₩": ("won", "won", "", ""),
    "₽": ("rouble", "roubles", "kopeck", "kopecks"), "CNY": ("yuan", "yuan", "", ""),
    "CHF": ("Swiss franc", "Swiss francs", "centime", "centimes"),
}  # fmt: skip
_CODES = {"USD": "$", "US$": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "KRW": "₩", "RMB": "CNY"}
_CODE_NAMES = (*_CODES, "CHF", "CNY")
_SCALES = {
    "k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "t": "trillion",
    "tn": "trillion", "thousand": "thousand", "million": "million", "billion": "billion", "trillion": "trillion",
}  # fmt: skip
# The star is the plural's s.
_UNITS = {
    "km/h": "kilometer* per hour", "kph": "kilometer* per hour", "mph": "mile* per hour",
    "m/s": "meter* per second", "km²": "square kilometer*", "m²": "square meter*", "m³": "cubic meter*",
    "km": "kilometer*", "cm": "centimeter*", "mm": "millimeter*", "m": "meter*", "kg": "kilogram*",
    "mg": "milligram*", "g": "gram*", "ml": "milliliter*", "mL": "milliliter*", "l": "liter*", "L": "liter*",
    "lb": "pound*", "lbs": "pound*", "oz": "ounce*", "mi": "mile*", "yd": "yard*", "GHz": "gigahertz",
    "MHz": "megahertz", "kHz": "kilohertz", "Hz": "hertz", "kWh": "kilowatt hour*", "kW": "kilowatt*",
    "W": "watt*", "V": "volt*", "TB": "terabyte*", "GB": "gigabyte*", "MB": "megabyte*", "KB": "kilobyte*",
    "kB": "kilobyte*", "GiB": "gibibyte*", "MiB": "mebibyte*", "Mbps": "megabit* per second", "dB": "decibel*",
    "kcal": "kilocalorie*", "ms": "millisecond*", "hrs": "hour*", "hr": "hour*", "h": "hour*", "mins": "minute*",
    "min": "minute*", "secs": "second*", "sec": "second*", "s": "second*", "px": "pixel*",
    "°C": "degree* Celsius", "℃": "degree* Celsius", "°F": "degree* Fahrenheit", "℉": "degree* Fahrenheit",
    "°": "degree*", "%": "percent", "‰": "per mille",
}  # fmt: skip
_ABBREVIATIONS = {
    "dr.": "Doctor", "mr.": "Mister", "mrs.": "Missus", "ms.": "Miz", "mx.": "Mix", "prof.": "Professor",
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "vs": "versus",
    "approx.": "approximately", "ave.": "Avenue", "blvd.": "Boulevard", "rd.": "Road", "jr.": "Junior",
    "sr.": "Senior", "inc.": "Incorporated", "ltd.": "Limited", "corp.": "Corporation", "dept.": "Department",
    "fig.": "figure", "figs.": "figures", "cf.": "compare", "est.": "established", "gov.": "Governor",
    "gen.": "General", "sen.": "Senator", "rep.": "Representative", "capt.": "Captain", "lt.": "Lieutenant",
    "col.": "Colonel", "sgt.": "Sergeant", "mt.": "Mount", "hon.": "Honorable", "rev.": "Reverend",
    "a.k.a.": "also known as", "w/o": "without", "w/": "with",
}  # fmt: skip
_SYMBOLS = {
    "&": "and", "@": "at", "+": "plus", "=": "equals", "×": "times", "÷": "divided by", "≈": "approximately",
    "±": "plus or minus", "≤": "less than or equal to", "≥": "greater than or equal to", "≠": "not equal to",
    "→": "to", "⇒": "implies", "√": "square root of", "∞": "infinity", "π": "pi", "°": "degrees", "²": "squared",
    "³": "cubed", "<": "less than", ">": "greater than", "%": "percent", "§": "section",
}  # fmt: skip
_FRACTIONS = {
    "½": "one half", "⅓": "one third", "⅔": "two thirds", "¼": "one quarter", "¾": "three quarters",
    "⅛": "one eighth", "⅜": "three eighths", "⅝": "five eighths", "⅞": "seven eighths",
}  # fmt: skip
_LONGEST_NUMBER = 15  # longer digit strings are not quantities


def _dotted(parts: str) -> str:
    return " point ".join(cardinal(part) for part in parts.split("."))


def cardinal(digits: str) -> str:
    """A number's digits, with or without thousands separators and a decimal part, as words."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    if len(whole) > _LONGEST_NUMBER or (len(whole) > 1 and whole[0] == "0"):
        said = spell(whole)
    else:
        said = str(num2words(int(whole or 0))).replace(",", "")
    return f"{said} point {spell(decimals)}" if decimals else said


def spell(digits: str) -> str:
    """Digit by digit; what is not a digit is left out."""
    return " ".join(str(num2words(int(d))) for d in digits if d in "0123456789")


def ordinal(number: int) -> str:
    return str(num2words(number, to="ordinal")).replace(",", "")


def year(number: int) -> str:
    return str(num2words(number, to="year")).replace(",", "")


def _signed(match: re.Match[str]) -> str:
    """The group `n`, with the minus sign in front of it, if any."""
    return ("minus " if match["minus"] else "") + cardinal(match["n"])


def _number(match: re.Match[str]) -> str:
    """A bare number; four digits are a year where the word before says so."""
    before = match.string[max(match.start() - 12, 0) : match.start()]
    if re.fullmatch(_YEAR, match[0]) and _YEAR_CUE.search(before):
        return year(int(match[0]))
    return _signed(match)


def _money(match: re.Match[str]) -> str:
    symbol, amount, scale = match["symbol"], match["amount"], match["scale"]
    one, many, cent, cents = _CURRENCIES[_CODES.get(symbol, symbol)]
    minus = "minus " if match["minus"] else ""
    if scale:
        return f"{minus}{cardinal(amount)} {_SCALES[scale.lower()]} {many}"
    whole, _, part = amount.partition(".")
    if part and (len(part) != 2 or not cent):
        return f"{minus}{cardinal(amount)} {many}"
    hundredths = int(part or 0)
    small = f"{cardinal(str(hundredths))} {cent if hundredths == 1 else cents}"
    if hundredths and whole == "0":
        return minus + small
    said = f"{minus}{cardinal(whole)} {one if whole == '1' else many}"
    return f"{said} and {small}" if hundredths else said


def _date(year_digits: str | None, month: int, day: int) -> str | None:
    try:
        date(int(year_digits or 2000), month, day)
    except ValueError:
        return None
    said = f"{_MONTHS[month - 1]} {ordinal(day)}"
    return f"{said}, {year(int(year_digits))}" if year_digits else said


def _iso_date(match: re.Match[str]) -> str | None:
    return _date(match["year"], int(match["month"]), int(match["day"]))


def _numeric_date(match: re.Match[str]) -> str | None:
    first, second = int(match["first"]), int(match["second"])
    # Month first, as in America, unless that is no month; with dots the day comes first.
    month, day = (second, first) if first > 12 or match["sep"] == "." else (first, second)
    return _date(match["year"], month, day)


def _named_date(match: re.Match[str]) -> str | None:
    return _date(match["year"], _MONTH_NUMBERS[match["month"][:3].lower()], int(match["day"]))


def _time(match: re.Match[str]) -> str | None:
    parts = match.groupdict()
    hour, minute, second = int(parts["hour"]), parts.get("minute"), parts.get("second")
    half = (parts["half"] or "").strip().upper()
    if hour > 24 or int(minute or 0) > 59 or (half and not 1 <= hour <= 12):
        return None
    said = " " + cardinal(str(hour))
    if minute == "00":
        said += "" if half else " o'clock" if 1 <= hour <= 12 else " hundred"
    elif minute:
        said += f" {'oh ' if minute[0] == '0' else ''}{cardinal(str(int(minute)))}"
    if second:
        said += f" and {cardinal(str(int(second)))} seconds"
    return said + (f" {half[0]} M" + _stop_of(match) if half else "")


def _stop_of(match: re.Match[str]) -> str:
    """The full stop of an abbreviation that stands last ends the sentence, too."""
    return "." if match[0].endswith(".") and match.end() == len(match.string) else ""


def _quantity(match: re.Match[str]) -> str:
    name = _UNITS[match["unit"]] if match["unit"] != "ft" else "foot" if match["n"] == "1" else "feet"
    return f"{_signed(match)} {name.replace('*', '' if match['n'] == '1' else 's')}"


def _fraction(match: re.Match[str]) -> str | None:
    top, bottom = int(match["top"]), int(match["bottom"])
    if match[0] == "24/7" or top == bottom:
        return f"{cardinal(match['top'])} {cardinal(match['bottom'])}"
    if bottom < 2 or top == 0 or not (top < bottom <= 10 or bottom <= 4 or bottom in (12, 16, 20, 32, 64, 100)):
        return f"{cardinal(match['top'])} over {cardinal(match['bottom'])}" if not match["whole"] else None
    one, many = {2: ("half", "halves"), 4: ("quarter", "quarters")}.get(
        bottom, (ordinal(bottom), ordinal(bottom) + "s")
    )
    whole = f"{cardinal(match['whole'])} and " if match["whole"] else ""
    return f"{whole}{cardinal(str(top))} {one if top == 1 else many}"


def _range(match: re.Match[str]) -> str:
    low, high = match["low"], match["high"]
    said = year if re.fullmatch(_YEAR, low) and re.fullmatch(r"\d{2}|\d{4}", high) else None
    if said is None:
        return f"{cardinal(low)} to {cardinal(high)}"
    return f"{said(int(low))} to {said(int(high)) if len(high) == 4 else cardinal(high)}"


def _decade(match: re.Match[str]) -> str:
    said = year(int(match["year"])) if match["year"] else cardinal(match["digits"])
    return said[:-1] + "ies" if said.endswith("y") else said + "s"


def _abbreviation(match: re.Match[str]) -> str:
    return _ABBREVIATIONS[match["abbreviation"].lower()] + _stop_of(match)


def _saint(match: re.Match[str]) -> str:
    """ "St. Paul", but "Main St."."""
    before_name = re.match(r"\s+[A-Z]", match.string[match.end() : match.end() + 3])
    return "Saint" if before_name else "Street" + _stop_of(match)


def _letters(match: re.Match[str]) -> str:
    return " ".join(letter for letter in match[0] if letter.isalpha()).upper() + _stop_of(match)


def _domain(match: re.Match[str]) -> str:
    return match[0].replace("@", " at ").replace(".", " dot ").replace("_", " ").replace("+", " plus ")


def _glued(match: re.Match[str]) -> str:
    return f" {cardinal(match['n'])} "


def _choice(known: Iterable[str]) -> str:
    return "|".join(re.escape(key) for key in sorted(known, key=len, reverse=True))


_YEAR = r"1[1-9]\d\d|20\d\d"
_AMOUNT = rf"(?P<amount>{_NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion|bn|mn|tn|[kKMBT])\b)?"
_NUMBERED_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_HALF = r"\s?(?:(?i:[ap]m)\b|[ap]\.m\.)"
_YEAR_CUE = re.compile(
    r"\b(?:in|since|by|from|until|till|of|year|early|late|mid|around|before|after|during|circa|the|spring|summer"
    rf"|autumn|fall|winter|{'|'.join(_MONTHS)})\s$|[(©]\s?$",
    re.IGNORECASE,
)

_RULES: list[Rule] = [
    (r"^\s*(?P<n>\d{1,3})[.)]\s+", lambda m: cardinal(m["n"]) + ", "),
    (
        r"(?:(?<!\w)(?:\+\d{1,3}[ -])?\d{3}[ -]|(?:\+\d{1,3})?\s?\(\d{3}\)\s?)\d{3}[ -]\d{4}(?!\d)",
        lambda m: f" {spell(m[0])}",
    ),
    *markup(link=" link ", code=" code ", formula=" a formula "),
    (r"(?i:\b[\w.+-]{1,64}@(?:[\w-]{1,60}\.){1,4}[a-z]{2,10}\b)", _domain),
    (r"(?i:\b(?:[a-z][\w-]{0,60}\.){1,3}(?:com|org|net|edu|gov|io|ai|dev|info|co|uk|de|fr|eu|cn|app)\b)", _domain),
    (rf"(?P<minus>{_MINUS})(?P<symbol>US\$|[$€£¥₹₩₽])\s?{_AMOUNT}", _money),
    (rf"(?P<minus>{_MINUS}){_BEGIN}{_AMOUNT}\s?(?P<symbol>[$€£¥₹₩₽]|(?:{_choice(_CODE_NAMES)})\b)", _money),
    (rf"{_BEGIN}(?P<year>\d{{4}})-(?P<month>\d\d)-(?P<day>\d\d)(?=T\d|[^\w-]|\Z)", _iso_date),
    (rf"{_BEGIN}(?P<first>\d\d?)(?P<sep>[/.])(?P<second>\d\d?)(?P=sep)(?P<year>\d{{4}})(?!\d)", _numeric_date),
    (rf"\b(?P<month>{_MONTH})\s{_NUMBERED_DAY}(?![\w:%]|\.\d)(?:,?\s(?P<year>\d{{4}})\b)?", _named_date),
    (rf"{_BEGIN}{_NUMBERED_DAY}\s(?:of\s)?(?P<month>{_MONTH})(?!\w)(?:,?\s(?P<year>\d{{4}})\b)?", _named_date),
    (
        rf"(?:(?<=\d)T|(?<![\w.,:]))(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?![\d:])(?P<half>{_HALF})?",
        _time,
    ),
    (rf"{_BEGIN}(?P<hour>\d\d?)(?P<half>{_HALF})", _time),
    (rf"{_BEGIN}(?P<a>\d{{1,3}}):(?P<b>\d{{1,3}})(?![\d:])", lambda m: f"{cardinal(m['a'])} to {cardinal(m['b'])}"),
    (r"\b[vV]\.?(?P<parts>\d+(?:\.\d+)*)\b", lambda m: "version " + _dotted(m["parts"])),
    (rf"{_BEGIN}\d+(?:\.\d+){{2,}}", lambda m: _dotted(m[0])),
    (rf"{_BEGIN}(?:(?P<whole>\d+)\s)?(?P<top>\d\d?)/(?P<bottom>\d{{1,3}})(?![\d/])", _fraction),
    (r"(?<!\w)(?:'|(?<=\bthe ))(?P<digits>\d0)s\b|(?<!\w)(?P<year>[12]\d\d0)s\b", _decade),
    (
        rf"{_BEGIN}(?P<feet>\d)'(?P<inches>\d\d?)\"?(?!\w)",
        lambda m: f"{cardinal(m['feet'])} foot {cardinal(m['inches'])}",
    ),
    (rf"{_BEGIN}(?P<n>{_NUMBER})\s?[x×](?!\w|\s?\d)", lambda m: cardinal(m["n"]) + " times"),
    (rf"(?P<minus>{_MINUS}){_BEGIN}(?P<n>{_NUMBER})\s?(?P<unit>{_choice((*_UNITS, 'ft'))})(?![\w²³])", _quantity),
    (rf"{_BEGIN}(?<!\d-)(?P<low>\d+(?:\.\d+)?)\s?[-–~]\s?(?P<high>\d+(?:\.\d+)?)(?![\d-]|\.\d)", _range),
    (
        rf"{_BEGIN}(?P<n>\d{{1,3}}(?:,\d{{3}})*|\d{{1,15}})(?:st|nd|rd|th)\b",
        lambda m: ordinal(int(m["n"].replace(",", ""))),
    ),
    (rf"(?:#|\bNo\.\s?)(?P<n>{_NUMBER})", lambda m: "number " + cardinal(m["n"])),
    (rf"(?P<minus>{_MINUS}){_BEGIN}(?P<n>{_NUMBER})(?!\w)", _number),
    (r"(?P<n>\d+)", _glued),
    (rf"(?i:(?<![\w.])(?P<abbreviation>{_choice(_ABBREVIATIONS)})(?!\w))", _abbreviation),
    (r"\bSt\.(?!\w)", _saint),
    (r"(?<![\w.])(?:[A-Za-z]\.){2,}|\bPh\.D\.", _letters),
    (
        rf"\b(?P<month>{_MONTH_SHORT})\.(?!\w)",
        lambda m: _MONTHS[_MONTH_NUMBERS[m["month"][:3].lower()] - 1] + _stop_of(m),
    ),
    (f"[{''.join(_FRACTIONS)}]", lambda m: f" {_FRACTIONS[m[0]]} "),
    (r"(?<![\w.])(?P<initial>[A-Z])\.(?=\s[A-Z])", lambda m: m["initial"]),
    (r"[-=]+>", words(" to ")),
    (r"(?<=\w)\^(?=[\w-])", words(" to the power of ")),
    (r"(?<=[\w\s])/(?=[\w\s])", words(" ")),
    (f"[{''.join(_SYMBOLS)}]", lambda m: f" {_SYMBOLS[m[0]]} "),
]

ENGLISH = Reader(_RULES)
"""Says English sentences."""
