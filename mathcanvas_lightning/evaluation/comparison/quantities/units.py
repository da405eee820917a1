"""A closed table of units: SI with prefixes, everyday units, currencies, counted things.

A word that is not in the table is no unit.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType

Dimension = tuple[tuple[str, int], ...]
"""Base -> exponent, sorted."""
MAX_NAME = 40


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measurement, a currency, or the name of counted things."""

    dimension: Dimension
    factor: Fraction = Fraction(1)
    """Size relative to the base units."""
    zero: Fraction = Fraction(0)
    """Position of its zero in base units; not 0 for scales of temperature."""
    pi_power: int = 0
    """Power of pi in its size: -1 for radians."""

    @property
    def is_percent(self) -> bool:
        """Whether it is the percent sign."""
        return self.dimension == (("%", 1),)


_Names = Mapping[str, tuple[Unit, ...]]

_PREFIXES = {
    "n": Fraction(1, 10**9), "μ": Fraction(1, 10**6), "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000), "c": Fraction(1, 100), "d": Fraction(1, 10), "h": Fraction(100),
    "k": Fraction(1000), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
}  # fmt: skip
_PREFIX_WORDS = {
    "nano": "n", "micro": "μ", "milli": "m", "centi": "c", "deci": "d", "hecto": "h", "kilo": "k",
    "mega": "M", "giga": "G", "tera": "T",
}  # fmt: skip
_PREFIXED = """
m m 1 meter metre | g g 1 gram gramme | s s 1 second | L m3 1/1000 liter litre
N g*m/s2 1000 newton | J g*m2/s2 1000 joule | W g*m2/s3 1000 watt | Pa g/m/s2 1000 pascal
V g*m2/s3/A 1000 volt | A A 1 amp ampere | Ω g*m2/s3/A2 1000 ohm | Hz 1/s 1 hertz
C A*s 1 coulomb | F s4*A2/g/m2 1/1000 farad | T g/s2/A 1000 tesla | mol mol 1 mole
M mol/m3 1000 | Nm g*m2/s2 1000 | eV eV 1 | cal cal 1 calorie | B byte 1 byte | Wh g*m2/s2 3600000
"""
_PLAIN = """
in,inch,inches m 127/5000 | ft,foot,feet m 381/1250 | yd,yard m 1143/1250
mi,mile m 201168/125 | μm,micron m 1/1000000 | Å m 1/10000000000
t,ton,tonne,metric^ton g 1000000 | lb,lbs,pound g 45359237/100000 | oz,ounce g 45359237/1600000
s,sec,second s 1 | min,minute s 60 | h,hr,hour s 3600 | day,d s 86400 | week,wk s 604800
month month 1 | yr,year month 12 | decade month 120 | century,centuries month 1200
l,ltr m3 1/1000 | ml m3 1/1000000 | cc m3 1/1000000 | gal,gallon gal 1 | quart,qt gal 1/4
fl^oz gal 1/128 | tablespoon,tbsp gal 1/256 | teaspoon,tsp gal 1/768
pint,pt gal 1/8 | cup gal 1/16 | ha,hectare m2 10000 | acre acre 1 | are m2 100
°,degree,deg ° 1 | ',arcminute ° 1/60 | ",arcsecond ° 1/3600 | rad,radian ° 180:-1
revolution,rev,turn ° 360 | %,percent,pct % 1 | ‰ % 1/10
°C,℃,celsius,degrees^Celsius,degree^Celsius,degrees^C K 1@5463/20
°F,℉,fahrenheit,degrees^Fahrenheit,degrees^F K 5/9@229835/900 | K,kelvin K 1
mph m/s 1397/3125 | kph,kmph m/s 5/18 | knot m/s 463/900 | rpm °/s 6
atm g/m/s2 101325000 | bar g/m/s2 100000000 | dollar,USD,buck,US^dollar dollar 1
cent,¢ dollar 1/100 | dime dollar 1/10 | nickel dollar 1/20 | penny,pennies dollar 1/100
penny,pennies,pence,p GBP 1/100 | cent,eurocent,¢ euro 1/100
euro,EUR euro 1 | GBP,pound^sterling GBP 1 | pound GBP 1 | yuan,CNY,RMB,元,块 yuan 1
角,毛 yuan 1/10 | 分 yuan 1/100 | 分 s 60 | yen,JPY,円 yen 1
yensign yen 1 | yensign yuan 1 | rupee,Rs,INR rupee 1 | ruble rouble 1
厘米 m 1/100 | 毫米 m 1/1000 | 分米 m 1/10 | 米 m 1 | 千米,公里 m 1000
平方厘米 m2 1/10000 | 平方米 m2 1 | 平方分米 m2 1/100 | 平方千米 m2 1000000
公顷 m2 10000 | 公亩 m2 100 | 亩 m2 2000/3
立方厘米 m3 1/1000000 | 立方米 m3 1 | 立方分米 m3 1/1000
毫升 m3 1/1000000 | 升 m3 1/1000
克 g 1 | 千克,公斤 g 1000 | 斤 g 500 | 吨 g 1000000 | 秒 s 1 | 分钟 s 60
小时,时 s 3600 | 个小时 s 3600 | 天,日 s 86400 | 周,星期 s 604800 | 月,个月 month 1 | 年 month 12
度 ° 1 | 弧度 ° 180:-1 | 米/秒 m/s 1 | 千米/时 m/s 5/18 | 牛 g*m/s2 1000
伏,伏特 g*m2/s3/A 1000 | 牛顿 g*m/s2 1000 | 焦,焦耳 g*m2/s2 1000 | 瓦,瓦特 g*m2/s3 1000
安,安培 A 1 | 欧,欧姆 g*m2/s3/A2 1000 | 帕,帕斯卡 g/m/s2 1000 | 赫兹 1/s 1
摄氏度 K 1@5463/20 | 华氏度 K 5/9@229835/900 | pF,picofarad s4*A2/g/m2 1/1000000000000000
"""
_NO_UNITS = frozenset("unit units".split())
_COUNTED = frozenset(
    """
    apple orange pear banana lemon peach plum cherry berry strawberry fruit egg cookie cake candy
    chocolate sweet pie pizza slice piece loaf bag box basket bottle can jar cup glass plate bowl
    book page word letter note notebook pencil pen crayon marker eraser ruler stamp sticker card
    ticket coin bill token marble ball balloon bead block brick tile stick rod rope string bar toy
    doll car truck bus bike bicycle train boat ship plane wheel seat chair table desk shelf door
    window room house building floor tree flower plant leaf seed animal dog cat bird fish chicken
    hen duck cow sheep goat horse pig rabbit monkey bee ant spider frog turtle person people man
    woman men women child children kid boy girl student teacher pupil friend member player worker
    employee guest visitor customer passenger adult family group team class school club way
    method possibility choice option combination permutation arrangement outcome solution root
    answer case number integer digit factor divisor multiple prime term element subset set pair
    triple function point line segment side edge face vertex vertices corner angles diagonal
    triangle square rectangle circle cube sphere polygon quadrilateral pentagon hexagon region
    area part section row column cell game match goal round lap step stop trip time hit shot win
    loss vote question problem test exam lesson mark grade level place item object thing
    product order package packet pack parcel sheet stack pile shirt sock shoe hat glove coat
    button bulb lamp candle battery phone computer song movie painting picture photo image
    bracelet necklace ring gift present stone rock shell star planet interval symmetry handshake
    day night morning trial toss flip roll draw move turn jump bounce bacteria cell
    beat note song string hole nail screw bolt wire pipe cable lamp fan mirror frame sign flag mat
    rug towel blanket pillow cushion bench stool couch sofa bed crib shop store market farm field
    garden park pool lake river mountain hill road street path lane bridge gate wall fence roof
    stair step ladder tunnel cave island beach seashell feather nest egg worm butterfly snail whale
    shark lion tiger bear elephant giraffe zebra deer fox wolf mouse mice rat hamster kitten puppy
    teen senior nurse doctor driver pilot farmer baker cook chef artist actor singer dancer soldier
    police officer neighbor neighbour classmate teammate runner swimmer cyclist hiker camper scout
    crayon poster banner drawing painting puzzle riddle quiz story chapter paragraph sentence symbol
    digit prime factor bit row seat ride visit call message email post link file folder click
    donut doughnut muffin cupcake brownie pancake waffle sandwich burger hotdog taco bean pea carrot
    potato potatoes tomato tomatoes onion pepper cucumber melon watermelon grape mango coconut nut
    almond walnut peanut pretzel popcorn chip cracker noodle dumpling drink juice soda coffee tea
    molecule atom particle electron
    个 人 只 本 支 张 条 棵 辆 种 次 名 件 位 块 台 朵 头 颗 根 岁 页 道 题 倍 间 盒 袋 瓶
    圈 趟 首 碗 遍 匹 扇 处 栋 所 批 箱 捆 筐 桶 堆 串 束 篮 架
    艘 座 幅 封 片 粒 层 节 段 面 枚 枝 株 门 户 场 组 队 对 双
    """.split()
)
_DESCRIBING = frozenset("different distinct possible total whole full more such real".split())
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_FRACTION = re.compile(r"\\frac\{((?:[^{}]|\{[^{}]*\})*)\}\{((?:[^{}]|\{[^{}]*\})*)\}")
_BEHIND = re.compile(
    r"\s(?:old|long|tall|wide|high|deep|each|apart|away|left|altogether|in total|possible)$"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[^\W\d_]+|[°'\"%‰¢]|℃|℉)(?P<power>\^\{?(?P<exponent>-?\d)\}?|(?P<digit>\d))?"
    r"|(?P<sign>[*/()]))",
)


def find_units(text: str) -> tuple[Unit, ...]:
    """Reads a unit.

    Args:
        text: "cm", "km/h", "square metres", "m*s^{-2}", "miles per hour", "apples", ...

    Returns:
        Its meanings ("pounds" are a mass or a currency); empty if a word is not in the table.
    """
    text = re.sub(r"\b(square|cubic|sq|cu)(?:\s|\.\s?)(?=[A-Za-z])", r"\1 ", " ".join(text.split()))
    text = _FRACTION.sub(r"\1/(\2)", _BEHIND.sub("", text))
    text = text.replace(" squared", "^2").replace(" cubed", "^3").replace(".^", "^").strip(".")
    return _find(text) if 0 < len(text) <= MAX_NAME else ()


@lru_cache(maxsize=4096)
def _find(text: str) -> tuple[Unit, ...]:
    names = _table()
    if simple := _named(text, names):
        return simple
    if counted := _counted(text):
        return (Unit(((counted, 1),)),)
    unit = _product(text, names)
    return () if unit is None else (unit,)


def is_unitless(text: str) -> bool:
    """Whether a text says "units" of an unknown kind: "square units"."""
    words = text.lower().split()
    return (
        bool(words) and words[-1].split("^")[0] in _NO_UNITS and set(words[:-1]) <= _POWERS.keys()
    )


def _named(name: str, names: _Names) -> tuple[Unit, ...]:
    for form in (name, name.lower() if len(name) > 2 else name):
        for singular in (form, form.removesuffix("s"), form.removesuffix("es")):
            found = names.get(singular, ())
            if found and (len(singular) > 1 or singular == form):
                return found
    return ()


def _counted(text: str) -> str:
    words = text.lower().split()
    if not words or len(words) > 3 or not set(words[:-1]) <= _DESCRIBING:
        return ""
    last = words[-1]

    forms = (last, last.removesuffix("s"), last.removesuffix("es"), re.sub("ies$", "y", last))
    return next((one for one in forms if one in _COUNTED), "")


def _product(text: str, names: _Names) -> Unit | None:
    """Multiplies named units: "m/s^2", "kg*m^2", "square metres", "metres per second"."""
    text = re.sub(r"\bper\b|每", "/", text)

    power_ahead, divides, within, position = 1, False, False, 0
    powers: dict[str, int] = {}
    factor = Fraction(1)
    pending = bool(text)
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        position = token.end()
        if sign := token["sign"]:
            divides, within = (
                (sign == "/", False) if sign in "*/" and not within else (divides, within)
            )
            within = within or sign == "("
            within = within and sign != ")"
            pending = sign != ")"
            continue
        if (ahead := _POWERS.get(token["name"].lower())) and not token["power"]:
            power_ahead = ahead
            continue
        found = _named(token["name"], names)
        if not found and (counted := _counted(token["name"])):
            found = (Unit(((counted, 1),)),)
        if not found or found[0].zero or (found[0].pi_power and token["name"] != "rad"):
            return None
        exponent = (
            int(token["exponent"] or token["digit"] or 1) * power_ahead * (-1 if divides else 1)
        )
        for base, power in found[0].dimension:
            powers[base] = powers.get(base, 0) + power * exponent
        factor *= found[0].factor ** exponent
        power_ahead, pending = 1, False
        divides = divides and within
    if pending or power_ahead != 1 or text.count("(") != text.count(")"):
        return None
    return Unit(_sorted(powers), factor)


def _sorted(powers: Mapping[str, int]) -> Dimension:
    return tuple(sorted((base, power) for base, power in powers.items() if power))


@lru_cache(maxsize=1)
def _table() -> _Names:
    names: dict[str, list[Unit]] = {}
    for symbol, unit, words in _si_units():
        for prefix, scale in (("", Fraction(1)), *_PREFIXES.items()):
            scaled = Unit(unit.dimension, unit.factor * scale)
            names.setdefault(prefix + symbol, []).append(scaled)
        for word in words:
            names.setdefault(word, []).append(unit)
            for prefix, letter in _PREFIX_WORDS.items():
                names.setdefault(prefix + word, []).append(
                    Unit(unit.dimension, unit.factor * _PREFIXES[letter])
                )
    for entry in _entries(_PLAIN):
        spellings, dimension, size = entry.split()
        unit = _unit(dimension, size)
        for spelling in spellings.split(","):
            # A plain entry comes before a prefixed one: "min" is a minute, "ft" a foot.
            names.setdefault(spelling.replace("^", " "), []).insert(0, unit)
    return MappingProxyType({name: tuple(found) for name, found in names.items()})


def _si_units() -> Iterator[tuple[str, Unit, list[str]]]:
    for entry in _entries(_PREFIXED):
        symbol, dimension, size, *words = entry.split()
        yield symbol, _unit(dimension, size), words


def _entries(table: str) -> Iterator[str]:
    for line in table.strip().splitlines():
        yield from (entry.strip() for entry in line.split("|") if entry.strip())


def _unit(dimension: str, size: str) -> Unit:
    size, _, zero = size.partition("@")
    factor, _, pi_power = size.partition(":")
    powers: dict[str, int] = {}
    for sign, base, power in re.findall(r"([*/]?)([^\d*/]+)(\d?)", dimension):
        powers[base] = powers.get(base, 0) + int(power or 1) * (-1 if sign == "/" else 1)
    return Unit(_sorted(powers), Fraction(factor), Fraction(zero or 0), int(pi_power or 0))
