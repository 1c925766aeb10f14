"""Texts by which axzoo measures what a board makes of a text. All of them were written for this purpose.

Changing them changes which tokenizer.txt is chosen.
"""

# ruff: noqa: RUF001, E501

from __future__ import annotations

_ENGLISH = (
    """The harbour master kept two logbooks. In the first he wrote what the ships declared: 412 crates of oranges, 38 barrels of tar, one piano. In the second, which he never showed to anyone, he wrote what he believed.""",
    """"You're late," said Agnes, without looking up from the engine. "I've been here since six."

"The ferry didn't run. It's the wind again; they'll start at noon, if they start at all."

She wiped her hands on a rag that was older than both of them. "Then we'd better begin. Hand me the 10 mm spanner - no, the other one."
""",
    """Rain is expected in the north on Tuesday (15 to 20 mm), with gusts of up to 85 km/h on the coast. Temperatures stay between -2.5 °C and 7 °C. The outlook for the weekend isn't clear yet: one model shows high pressure from the Azores, the other doesn't.""",
    """Dear Mr. O'Brien,

thank you for your letter of 3 March 2021. We've checked invoice no. 2021/0457 and found that you're right: the second item ($1,249.00) was charged twice. We'll refund the amount within 14 days.

Yours sincerely,
M. L. Hartmann
Accounts Department
""",
    """To descale the kettle, mix half a litre of water with 4 tablespoons of vinegar, boil it once, and let it stand for 20 minutes. Pour it out, rinse twice, and boil fresh water before you make tea. Don't use steel wool!""",
    """A prime number has exactly two divisors. There are infinitely many of them: if p1, p2, ..., pn were all, then the number p1 * p2 * ... * pn + 1 would have a prime divisor that isn't among them. Euclid's argument is more than 2,300 years old, and it's still the shortest.""",
    """HEADQUARTERS TO ALL UNITS: DON'T CROSS THE BRIDGE. IT'S CLOSED UNTIL 18:00. We'll send a second message when THEY'RE done; until then, use the road via St. Mary's.""",
)

_LANGUAGES = (
    """Die Werkstatt öffnet um halb acht, aber der Meister ist meistens früher da. Er prüft zuerst die Öfen, dann die Gussformen, und schließlich trinkt er einen Kaffee, der so stark ist, dass kein Lehrling ihn mag. »Später«, sagt er, »werdet ihr ihn brauchen.«""",
    """Le train de 8 h 12 n'est jamais à l'heure. Aujourd'hui, pourtant, il est arrivé à 8 h 11, et personne n'était sur le quai : tout le monde savait qu'il serait en retard. « C'est la première fois », dit le chef de gare.""",
    """¿Quién ha dejado la ventana abierta? El gato salió anoche y no volvió hasta las seis; traía una pluma azul y muy poca vergüenza. Mañana pondremos un cerrojo.""",
    """Bibliotekarka znalazła w zwróconej książce list z 1974 roku. Nadawca prosił o przepisanie równania i życzył „spokojnej zimy”. Nikt nie wie, kim był adresat.""",
    """Поезд шёл медленно, и за окном тянулись поля. Она читала письмо уже в третий раз. «Приезжай, - писал брат, - здесь всё по-старому, только яблонь стало больше».""",
    """وصلت السفينة إلى الميناء قبل الفجر، وكان البحّارة يغنّون. قال القبطان: «لن نبحر غدًا، فالريح شديدة». مرّت ثلاثة أيام.""",
    """नदी के किनारे एक पुराना पेड़ है। बच्चे वहाँ हर शाम खेलते हैं, और दादी उन्हें कहानियाँ सुनाती हैं। कल बारिश हुई, इसलिए कोई नहीं आया।""",
    """朝の市場は静かだった。魚屋の主人は氷を砕きながら、「今日は鯵がいいよ」と言った。私は三匹買って、坂道をゆっくり帰った。ラジオでは天気予報をやっていた。""",
    """겨울이 되면 호수가 얼어서 아이들이 스케이트를 탄다. 할아버지는 얼음의 두께를 재고 "아직 안 돼"라고 말씀하셨다. 우리는 하루를 더 기다렸다.""",
    """Tiệm bánh ở góc phố mở cửa lúc năm giờ sáng. Mùi bánh mì nóng lan khắp con đường, và người đưa báo luôn dừng lại mua hai ổ.""",
    """Η βάρκα ήταν μικρή, αλλά γερή. Ο παππούς την είχε φτιάξει μόνος του το 1956, με ξύλο από πεύκο και πολλή υπομονή.""",
    """תחנת הרכבת נסגרה לפני שנים, אבל השעון עוד עובד. בכל יום בשבע בבוקר הוא מצלצל, ואף אחד לא יודע למה.""",
)

_CHINESE = (
    """修表匠的店开在老街的尽头，门口没有招牌，只挂着一只停了的钟。他说，等哪一天这只钟自己走起来，他就退休。街坊们都笑他，可是每天早上还是有人从门口往里看一眼。""",
    """实验分为三步：第一，称取5.0克氯化钠；第二，加入100毫升蒸馏水并搅拌；第三，在25℃下测量溶液的电导率。请注意，温度每升高1℃，读数大约增加2%。""",
    """“你明天还来吗？”她问。“来，”他说，“只要不下雨。”结果第二天下了整整一天的雨，他还是来了，手里拿着两把伞。""",
    """根据2021年的统计，该市共有图书馆47座，藏书超过620万册。其中，少年儿童读物约占三分之一。今年计划新建3座社区图书馆，并延长周末的开放时间。""",
    """安装步骤如下：
1. 打开包装，确认零件齐全；
2. 用附带的螺丝刀（十字形）固定底板；
3. 接通电源，指示灯应为绿色。

如果指示灯闪烁，请拔掉插头，等待10秒后重试。
""",
    """山路很窄，只能容一个人通过。老人走在前面，背着一筐刚采的菌子，脚步比我还稳。他一边走一边告诉我哪些能吃，哪些不能吃；我记住了三种，忘了其余的。""",
    """這封信寄到的時候，他已經搬走兩年了。郵差把它交給樓下的麵館，老闆便把信夾在帳本裡，說總有一天會有人來拿。""",
)

_MARKDOWN = (
    """# Paper boats

A small library for folding *paper boats*. It has **no dependencies**.

## Install

```sh
pip install paper-boats
paper-boats --version
```

## Use

1. Choose a sheet: `A4`, `A5` or `letter`.
2. Fold it:
   - along the long side,
   - then along the short side.
3. Let it dry.

> A boat that is folded twice floats longer.

See [the guide](docs/guide.md#folding) or write to <boats@example.org>.
""",
    """| Name | Length (m) | Built | Afloat |
|------|-----------:|:-----:|--------|
| Elsa | 12.40 | 1931 | yes |
| Dorothea | 8.05 | 1958 | no |
| Karl III | 27.90 | 2004 | yes |

*Lengths are measured at the waterline.*
""",
    """### Changes in 2.4.0

* Fixed: the clock went backwards when the time zone was `Europe/Lisbon` (#318).
* Added `--dry-run`, which prints what would be moved:

      $ tidy --dry-run ~/Downloads
      would move 14 files

* Removed: `--force`. Use `--yes` instead.

---

**Note:** versions before 2.0 can't read the new index.


""",
    """## FAQ

**Does it work offline?**
Yes. All maps are stored on the device; only the weather needs a connection.

**How large are the maps?**
About 40 MB for each 100 x 100 km. You can delete them under *Settings > Storage*.

- [x] roads
- [ ] rivers
- [ ] contour lines

![A map of the island](img/map.png "Scale 1:50000")
""",
    """Let $f(x) = x^2 - 2$. Newton's method gives

$$x_{n+1} = x_n - \\frac{f(x_n)}{f'(x_n)} = \\frac{1}{2}\\left(x_n + \\frac{2}{x_n}\\right).$$

From $x_0 = 1$ follow $1.5$, $1.41667$, $1.414216$, ...
""",
)

_CODE = (
    '''"""Counting words."""

from collections import Counter
from pathlib import Path


class WordCount:
    """The words of a file, and how often each occurs."""

    def __init__(self, path: Path, lower: bool = True) -> None:
        self._path = path
        self._lower = lower

    def most_common(self, n: int = 10) -> list[tuple[str, int]]:
        text = self._path.read_text(encoding="utf-8")
        if self._lower:
            text = text.lower()
        words = [word.strip(".,;:!?") for word in text.split()]
        return Counter(word for word in words if word).most_common(n)


if __name__ == "__main__":
    import sys

    for word, count in WordCount(Path(sys.argv[1])).most_common():
        print(f"{count:6d}  {word}")
''',
    '''def merge(left, right):
    """Merge two sorted lists."""
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1

    # one of them is empty now
    return result + left[i:] + right[j:]


try:
    assert merge([1, 3], [2, 4]) == [1, 2, 3, 4]
except AssertionError as error:
    raise SystemExit(1) from error
''',
    """#include <stdio.h>
#include <stdint.h>

static uint32_t crc32_of(const uint8_t *data, size_t n)
{
    uint32_t crc = 0xFFFFFFFFu;

    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = (crc & 1) ? (crc >> 1) ^ 0xEDB88320u : crc >> 1;
    }
    return ~crc;
}

int main(void)
{
    const char *text = "123456789";
    printf("%08x\\n", crc32_of((const uint8_t *)text, 9)); /* cbf43926 */
    return 0;
}
""",
    """{
  "name": "paper-boats",
  "version": "1.2.0",
  "sizes": [148, 210, 297],
  "flags": {"dry": true, "depth": null},
  "scripts": {
    "build": "tsc -p .",
    "test": "node --test"
  }
}
""",
    """export async function fetchAll(urls, { limit = 4 } = {}) {
  const results = [];
  const queue = [...urls];
  const work = async () => {
    while (queue.length > 0) {
      const url = queue.shift();
      results.push(await fetch(url).then((r) => r.json()));
    }
  };
  await Promise.all(Array.from({ length: limit }, work));
  return results;
}
""",
    """#!/bin/sh
set -eu
for f in "$@"; do
\tcase "$f" in
\t*.txt) wc -l < "$f" ;;
\t*) echo "skipped: $f" >&2 ;;
\tesac
done
""",
    """SELECT c.name, COUNT(*) AS orders, SUM(o.total_cents) / 100.0 AS total
FROM customers AS c
JOIN orders AS o ON o.customer_id = c.id
WHERE o.created_at >= '2021-01-01' AND c.country IN ('DE', 'FR')
GROUP BY c.name
HAVING COUNT(*) > 3
ORDER BY total DESC
LIMIT 20;
""",
)

_SYMBOLS = (
    "1234567890 3.14159 1e-9 0x1F -273.15 1,000,000 12:34:56 2021-03-04T05:06:07Z",
    "🙂 thank you! 👩‍🔬🧪 👍🏽 🇳🇴 → ← ≤ ≥ ± × ÷ € £ ¥ © ® ™ … “quoted” ‘single’ – —",
    "a\tb\tc\n1\t2\t3\n\n\n  indented\n    more\n\n",
    "user_name@example.com https://example.org/path?q=a%20b&n=10#top C:\\Users\\me\\file_01.txt /usr/local/bin",
    "½ cup, ¾ cup, x² + y³, H₂O, №5, Ⅷ, ①②③, naïve café, ﬁne, Ω, µm",
    "(a+b)*(c-d)/e^2 != [x, y]; if (n<=0 || m==1) { return; } //done",
    "   leading and trailing   ",
)

TEXTS = {
    "english": _ENGLISH,
    "other languages": _LANGUAGES,
    "chinese": _CHINESE,
    "markdown": _MARKDOWN,
    "code": _CODE,
    "symbols": _SYMBOLS,
}
"""Texts by their kind."""


def _turns(*texts: str, system: str | None = None) -> tuple[dict[str, str], ...]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return (*first, *({"role": roles[n % 2], "content": text} for n, text in enumerate(texts)))


CONVERSATIONS = (
    _turns("What is the capital of Portugal?"),
    _turns("What's 17 * 23?", system="You are a helpful assistant. Answer briefly."),
    _turns("你好，请用一句话介绍一下你自己。"),
    _turns("把下面的句子翻译成英文：山路很窄，只能容一个人通过。", system="你是一名翻译。"),
    _turns(
        "Write a Python function that reverses a string.",
        "```python\ndef reverse(text):\n    return text[::-1]\n```\n\nIt uses a slice with a negative step.",
        "Now without a slice, please.",
    ),
    _turns(
        "I've got 3 eggs, some flour and milk. What can I cook?",
        "You could make:\n\n1. **Pancakes** - mix everything and fry thin cakes.\n2. **Crêpes** - the same, with more milk.\n3. **Yorkshire pudding** - bake it hot.",
        "The second one. How much milk?\n",
        system="You're a cook.",
    ),
    _turns(
        "Summarize:\n\nThe harbour master kept two logbooks. In the first he wrote what the ships declared.\n\nOne sentence only."
    ),
    _turns("¿Qué tiempo hará mañana?", "No lo sé: no tengo acceso al pronóstico.", "Vale, ¡gracias!"),
    _turns('Fix this:\n\n```json\n{"a": 1,\n "b": [2, 3,]}\n```', system="Only answer with code."),
    _turns("Is 2021 prime? Think step by step.", "2021 = 43 * 47, so no.", "And 2027?", "Yes.", "And 2029?"),
    _turns("  hello  "),
    _turns("Привет! Напиши короткое стихотворение о зиме."),
)
"""Conversations, without the answer that a model would write next."""
