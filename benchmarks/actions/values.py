# SPDX-License-Identifier: Apache-2.0
"""Values that people say, and what they mean: pairs of words and argument, by kind."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Value = tuple[str, Any]
"""How it is said, and the argument."""

WORDS: dict[str, tuple[str, ...]] = {
    "person": (
        "Anna", "Ben", "Carla", "my mother", "my brother", "Dr. Weber", "Emma", "Farid", "Grace", "my boss", "Hiro", "Ines", "Jamal",
        "grandma", "Katja", "Liam", "Mei", "my landlord", "Noah", "Olga", "Pedro", "the plumber", "Quinn", "Rosa", "Sam", "my neighbour",
        "Tariq", "Uma", "Viktor", "aunt Wendy", "Xenia", "Yusuf", "Zoe", "uncle Theo", "the dentist", "Mrs. Okafor",
    ),
    "message": (
        "I am late", "dinner is ready", "the meeting moved to Monday", "I forgot my keys", "call me back", "we are out of milk",
        "happy birthday", "the train is cancelled", "I am on my way", "see you at the gate", "the dog is fine", "thanks for yesterday",
        "I can't come tonight", "bring the charger", "the package arrived", "good luck", "I found your jacket", "lunch at one works",
        "please water the plants", "the door is open", "we won", "the doctor said it is nothing", "it starts at eight", "I left the car at work",
    ),
    "place": (
        "Berlin", "the airport", "the nearest pharmacy", "Lisbon", "the main station", "Oslo", "the city library", "Nairobi",
        "my office", "Kyoto", "the swimming pool", "Dublin", "the old harbour", "Lima", "the hospital", "Toronto", "the zoo", "Prague",
        "the botanical garden", "Seoul", "the town hall", "Porto", "the museum of art", "Hanoi", "the north gate", "Bergen",
    ),
    "music": (
        "jazz", "Bach", "the Beatles", "something calm", "my running playlist", "Nina Simone", "techno", "whale sounds", "Queen",
        "the radio", "Chopin", "hip hop", "a podcast about space", "country", "Mozart", "rain sounds", "Miles Davis", "samba",
        "the news", "Johnny Cash", "piano", "Dvorak", "old reggae", "film music",
    ),
    "note": (
        "the bike is at the station", "wifi code is on the fridge", "ask about the rent", "size 42 shoes", "blue paint for the door",
        "the spare key is under the pot", "return the books", "the tyre loses air", "gate B12", "seat 14 C", "read chapter five",
        "the filter needs changing", "room 305", "pay the gas bill", "the recipe needs two eggs", "check the back brake",
        "the locker is number 77", "use the side entrance",
    ),
    "item": (
        "milk", "bread", "two lemons", "coffee", "toothpaste", "rice", "cat food", "olive oil", "batteries", "onions", "soap", "flour",
        "apples", "tea", "a light bulb", "yogurt", "paper towels", "honey", "carrots", "oat flakes", "candles", "pepper",
    ),
    "event": (
        "dentist", "dinner with Anna", "team meeting", "yoga", "parents' evening", "car inspection", "haircut", "choir", "job interview",
        "football", "lunch with Ben", "doctor", "piano lesson", "book club", "the exam", "a walk with grandma", "swimming", "the plumber's visit",
    ),
    "day": (
        "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "tomorrow", "today", "the 3rd of May", "the 21st of June",
        "the 12th of August", "the 30th of October", "the 1st of February", "the 17th of March", "the 9th of November",
    ),
    "query": (
        "bicycle repair", "how to boil an egg", "cheap flights to Rome", "symptoms of a cold", "history of chess", "vegan pancakes",
        "second hand sofas", "the tallest tree", "visa for Japan", "learning the guitar", "solar panels", "knitting for beginners",
        "electric cars", "the moon landing", "how to remove wine stains", "quiet laptops", "bird calls", "mortgage rates",
        "hiking in Norway", "how bees fly", "the price of gold", "sourdough",
    ),
    "app": (
        "the camera", "maps", "the calculator", "my mail", "the calendar", "settings", "the gallery", "the browser", "the clock",
        "contacts", "the notes app", "the bank app", "the podcast player", "the compass", "the translator", "files", "the weather app", "the recorder",
    ),
    "camera": ("front", "back", "selfie", "main", "rear"),
}  # fmt: skip

HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def _time(random: Random) -> Value:
    hour, minute = random.randrange(24), random.choice((0, 0, 0, 5, 10, 15, 20, 30, 30, 40, 45, 50, 55))
    half, twelve = ("am" if hour < 12 else "pm"), (hour - 1) % 12 + 1
    digits = f"{twelve}{f':{minute:02}' if minute else ''} {half}"
    after = {15: "a quarter past", 30: "half past"}.get(minute)
    ways = [digits, f"{hour:02}:{minute:02}"]
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    ways += (
        [f"{after} {HOURS[twelve - 1]} {part}"]
        if after
        else [f"{HOURS[twelve - 1]} o'clock {part}"]
        if not minute
        else []
    )
    ways += ["noon"] if (hour, minute) == (12, 0) else ["midnight"] if (hour, minute) == (0, 0) else []
    return random.choice(ways), f"{hour:02}:{minute:02}"


def _minutes(random: Random) -> Value:
    minutes = random.choice((*range(2, 21), 25, 30, 35, 40, 45, 50, 55, 60, 75, 90, 120, 150, 180, 240))
    hours, rest = divmod(minutes, 60)
    named = {15: "a quarter of an hour", 30: "half an hour", 60: "an hour", 90: "an hour and a half"}
    ways = [f"{minutes} minutes", f"{minutes} min"]
    ways += [named[minutes]] * 2 if minutes in named else []
    ways += [f"{hours} hours"] if hours > 1 and not rest else []
    return random.choice(ways), minutes


def _percent(random: Random) -> Value:
    percent = random.choice((0, *range(5, 100, 5), 100))
    named = {0: "zero", 25: "a quarter", 50: "half", 100: "the maximum"}
    ways = [f"{percent} percent", f"{percent}%"]
    return random.choice([*ways, named[percent]] if percent in named else ways), percent


def _switch(random: Random) -> Value:
    on = random.random() < 0.5
    return ("on" if on else "off"), on


DRAWN: dict[str, Callable[[Random], Value]] = {
    "time": _time, "minutes": _minutes, "percent": _percent, "switch": _switch,
}  # fmt: skip
"""Kinds with too many values for a list."""
