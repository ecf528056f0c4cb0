"""Numbers, dates, money, times and units in Chinese words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from assistant.speech.normalize import HAN, Reader, Rule, markup, words

_DIGITS = "零一二三四五六七八九"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_BEGIN = r"(?<![A-Za-z0-9.,])"  # Chinese characters may stand directly in front
_MINUS = r"(?:(?<![A-Za-z0-9)])[-−])?"
_LONGEST_NUMBER = 16

# The unit, and the hundredth's word where prices are said with one.
_CURRENCIES = {
    "¥": "元", "￥": "元", "CNY": "元", "RMB": "元", "$": "美元", "US$": "美元", "USD": "美元",
    "€": "欧元", "EUR": "欧元", "£": "英镑", "GBP": "英镑", "JPY": "日元", "HK$": "港元", "₩": "韩元",
}  # fmt: skip
_UNITS = {
    "km/h": "公里每小时", "m/s": "米每秒", "km²": "平方公里", "m²": "平方米", "m³": "立方米", "km": "公里",
    "cm": "厘米", "mm": "毫米", "m": "米", "kg": "公斤", "mg": "毫克", "g": "克", "ml": "毫升", "mL": "毫升", "L": "升",
    "GHz": "吉赫", "MHz": "兆赫", "Hz": "赫兹", "kWh": "千瓦时", "kW": "千瓦", "W": "瓦", "V": "伏", "°C": "摄氏度",
    "℃": "摄氏度", "°F": "华氏度", "℉": "华氏度", "°": "度",
}  # fmt: skip
_MEASURES = "个位名只条张本件次天年月周岁人杯块家种台辆座间句分秒小点倍千万亿米元斤层页部场顿趟遍双对口"
_SYMBOLS = {
    "&": "和", "+": "加", "=": "等于", "×": "乘以", "÷": "除以", "≈": "约等于", "±": "正负", "≤": "小于等于",
    "≥": "大于等于", "≠": "不等于", "→": "到", "<": "小于", ">": "大于", "°": "度", "π": "派", "∞": "无穷大",
}  # fmt: skip
_FRACTIONS = {"½": "二分之一", "⅓": "三分之一", "⅔": "三分之二", "¼": "四分之一", "¾": "四分之三"}


def spell(digits: str) -> str:
    """Digit by digit; what is not a digit is left out."""
    return "".join(_DIGITS[int(d)] for d in digits if d in "0123456789")


def _below_ten_thousand(number: int) -> str:
    said, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, unit)
        if digit:
            said += ("零" if gap and said else "") + _DIGITS[digit] + name
        gap = not digit
    return said


def cardinal(digits: str) -> str:
    """A number's digits, with or without thousands separators and a decimal part, as words."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    if len(whole) > _LONGEST_NUMBER or (len(whole) > 1 and whole[0] == "0"):
        said = spell(whole)
    else:
        said = _whole(int(whole or 0))
    return f"{said}点{spell(decimals)}" if decimals else said


def _whole(number: int) -> str:
    if number == 0:
        return "零"
    said = ""
    groups = []
    while number:
        number, group = divmod(number, 10_000)
        groups.append(group)
    names = ("", "万", "亿", "万亿")
    for index in range(len(groups) - 1, -1, -1):
        group = groups[index]
        if group:
            # A zero is heard where a group does not begin with thousands.
            said += ("零" if said and group < 1000 else "") + _below_ten_thousand(group) + names[index]
    return said[1:] if said.startswith("一十") else said


def _counted(match: re.Match[str]) -> str:
    """A number before what it counts: 2 is 两 there."""
    number = match["n"].replace(",", "")
    said = "两" if number == "2" else cardinal(number)
    return ("负" if match["minus"] else "") + said


def _signed(match: re.Match[str]) -> str:
    return ("负" if match["minus"] else "") + cardinal(match["n"])


def _money(match: re.Match[str]) -> str:
    amount, unit = match["amount"], _CURRENCIES[match["symbol"]]
    minus, scale = "负" if match["minus"] else "", match["scale"] or ""
    whole, _, part = amount.partition(".")
    if unit != "元" or scale or len(part) != 2 or match["symbol"] not in "¥￥":
        return f"{minus}{_two(amount, scale or unit)}{scale}{unit}"
    jiao, fen = int(part[0]), int(part[1])
    said = f"{_two(whole, unit)}元" if whole != "0" or not (jiao or fen) else ""
    said += f"{_DIGITS[jiao]}角" if jiao else "零" if fen and said else ""
    return minus + said + (f"{_DIGITS[fen]}分" if fen else "")


def _two(number: str, unit: str) -> str:
    return "两" if number == "2" and unit[0] in _MEASURES + "美欧英日港韩" else cardinal(number)


def _date(match: re.Match[str]) -> str | None:
    month, day = int(match["month"]), int(match["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{spell(match['year'])}年{_whole(month)}月{_whole(day)}日"


def _time(match: re.Match[str]) -> str | None:
    hour, minute, second = int(match["hour"]), int(match["minute"]), match["second"]
    if hour > 24 or minute > 59:
        return None
    said = ("两" if hour == 2 else _whole(hour)) + "点"
    if minute:
        said += ("零" if minute < 10 else "") + _whole(minute) + "分"
    elif not second:
        said += "整"
    return said + (_whole(int(second)) + "秒" if second else "")


def _percent(match: re.Match[str]) -> str:
    return f"{'负' if match['minus'] else ''}{'百' if match['sign'] in '%％' else '千'}分之{cardinal(match['n'])}"


def _fraction(match: re.Match[str]) -> str:
    return f"{cardinal(match['bottom'])}分之{cardinal(match['top'])}"


def _choice(known: Iterable[str]) -> str:
    return "|".join(re.escape(key) for key in sorted(known, key=len, reverse=True))


_CURRENCY = _choice(_CURRENCIES)
_AMOUNT = rf"(?P<amount>{_NUMBER})\s?(?P<scale>[千万亿])?"
_RULES: list[Rule] = [
    (r"^\s*(?P<n>\d{1,3})[.)、]\s*(?!\d)", lambda m: "第" + cardinal(m["n"]) + "，"),
    *markup(link="链接", code="代码", formula="公式"),
    (rf"(?P<minus>{_MINUS})(?P<symbol>{_CURRENCY})\s?{_AMOUNT}", _money),
    (rf"(?P<minus>{_MINUS}){_BEGIN}{_AMOUNT}\s?(?P<symbol>{_CURRENCY})(?![A-Za-z])", _money),
    (rf"{_BEGIN}(?P<year>\d{{4}})(?P<sep>[-/.])(?P<month>\d\d?)(?P=sep)(?P<day>\d\d?)(?![\d.])", _date),
    (rf"{_BEGIN}(?P<year>\d{{4}})(?=\s?年)", lambda m: spell(m["year"])),
    (
        rf"{_BEGIN}(?P<hour>\d\d?)[:：](?P<minute>\d\d)(?:[:：](?P<second>\d\d))?(?![\d:：])",
        _time,
    ),
    (rf"{_BEGIN}(?P<a>\d{{1,3}})[:：](?P<b>\d{{1,3}})(?![\d:：])", lambda m: f"{cardinal(m['a'])}比{cardinal(m['b'])}"),
    (rf"(?P<minus>{_MINUS}){_BEGIN}(?P<n>{_NUMBER})\s?(?P<sign>[%％‰])", _percent),
    (rf"{_BEGIN}(?P<top>\d{{1,3}})/(?P<bottom>[1-9]\d{{0,2}})(?![\d/])", _fraction),
    (rf"{_BEGIN}1[3-9]\d(?:[ -]?\d{{4}}){{2}}(?!\d)|(?<!\d)0\d{{2,3}}-\d{{7,8}}(?!\d)", lambda m: spell(m[0])),
    (
        rf"(?P<minus>{_MINUS}){_BEGIN}(?P<n>{_NUMBER})\s?(?P<unit>{_choice(_UNITS)})(?![A-Za-z²³])",
        lambda m: _signed(m) + _UNITS[m["unit"]],
    ),
    (
        rf"{_BEGIN}(?P<low>{_NUMBER})\s?[-–~～]\s?(?P<high>{_NUMBER})(?![\d-])",
        lambda m: f"{cardinal(m['low'])}到{cardinal(m['high'])}",
    ),
    (r"\b[vV](?P<parts>\d+(?:\.\d+)*)", lambda m: "版本" + "点".join(map(cardinal, m["parts"].split(".")))),
    (rf"{_BEGIN}\d+(?:\.\d+){{2,}}", lambda m: "点".join(map(cardinal, m[0].split(".")))),
    (rf"(?<=第)\s?(?P<n>{_NUMBER})", lambda m: cardinal(m["n"])),
    (rf"(?P<minus>{_MINUS}){_BEGIN}(?P<n>{_NUMBER})(?=\s?[{_MEASURES}])(?!\s?[月分])", _counted),
    (rf"(?P<minus>{_MINUS}){_BEGIN}(?P<n>{_NUMBER})(?![A-Za-z])", _signed),
    (r"(?P<n>\d+)", lambda m: spell(m["n"])),
    (f"[{''.join(_FRACTIONS)}]", lambda m: _FRACTIONS[m[0]]),
    (f"[{''.join(_SYMBOLS)}]", lambda m: _SYMBOLS[m[0]]),
    (rf"(?<=[{HAN}])\s+(?=[{HAN}])", words("")),
]

CHINESE = Reader(_RULES, stop="。")
"""Says Chinese sentences."""
