"""Sentences of ten topics in eight forms, written as JSON lines."""

import json

TOPICS = ("天气", "公园", "北京", "大学", "酒店", "房间", "经济", "改革", "价格", "服务")
FORMS = ("{}很好", "{}怎么样", "我们说{}", "{}和今天", "一起去{}", "每天的{}", "平稳的{}", "干净{}")


def text(topic, form):
    return FORMS[form].format(TOPICS[topic])


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
