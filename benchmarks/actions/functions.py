# SPDX-License-Identifier: Apache-2.0
"""The functions of a phone, how people ask for them, and values that they ask with.

A function has phrasings with {slots}; a slot is a kind of value (values.py). Of both, the training data has a part, and
the test set another: it asks in words and with values that no training row has.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """`slots`: argument -> kind of value. `phrasings`: what somebody says, with every slot in it once."""

    name: str
    slots: dict[str, str]
    phrasings: tuple[str, ...]


FUNCTIONS = (
    Function("set_alarm", {"time": "time"}, (
        "set an alarm for {time}", "wake me at {time}", "wake me up at {time}", "alarm at {time}",
        "I need to be up by {time}", "get me out of bed at {time}", "put an alarm on {time}", "make it ring at {time}",
        "I have to get up at {time}", "alarm {time}", "don't let me sleep past {time}", "rouse me at {time}",
    )),
    Function("set_timer", {"minutes": "minutes"}, (
        "set a timer for {minutes}", "timer {minutes}", "start a timer of {minutes}", "count down {minutes}",
        "remind me in {minutes} that the oven is on", "give me {minutes} on the clock", "tell me when {minutes} are over",
        "{minutes} timer", "start counting {minutes}", "let me know after {minutes}", "ping me in {minutes}",
    )),
    Function("send_message", {"to": "person", "text": "message"}, (
        "text {to} that {text}", "send {to} a message: {text}", "write {to} {text}", "message {to} saying {text}",
        "tell {to} {text}", "let {to} know {text}", "text {to}: {text}", "send a text to {to}, {text}",
        "drop {to} a line that {text}", "shoot {to} a message, {text}", "pass on to {to} that {text}",
    )),
    Function("call", {"person": "person"}, (
        "call {person}", "phone {person}", "ring {person}", "give {person} a call", "dial {person}", "I want to talk to {person}",
        "get {person} on the line", "call up {person}", "can you ring {person} for me", "connect me with {person}",
        "put me through to {person}",
    )),
    Function("navigate", {"to": "place"}, (
        "navigate to {to}", "take me to {to}", "directions to {to}", "how do I get to {to}", "show me the way to {to}",
        "drive to {to}", "route to {to}", "I need to get to {to}", "bring me to {to}", "guide me to {to}",
        "which way is {to}",
    )),
    Function("play_music", {"what": "music"}, (
        "play {what}", "put on {what}", "I want to hear {what}", "start {what}", "play me some {what}", "let's listen to {what}",
        "music: {what}", "give me {what}", "queue {what}", "could we have {what}", "throw on {what}",
    )),
    Function("set_volume", {"percent": "percent"}, (
        "set the volume to {percent}", "volume {percent}", "turn the sound to {percent}", "make it {percent} loud",
        "put the volume at {percent}", "sound at {percent}", "change the volume to {percent}", "volume up to {percent}",
        "bring the sound to {percent}", "loudness {percent}",
    )),
    Function("set_brightness", {"percent": "percent"}, (
        "set the brightness to {percent}", "brightness {percent}", "make the screen {percent} bright", "dim the screen to {percent}",
        "screen at {percent}", "put the brightness at {percent}", "change the screen to {percent}", "display brightness {percent}",
        "adjust the display to {percent}", "take the screen to {percent}",
    )),
    Function("flashlight", {"on": "switch"}, (
        "turn the flashlight {on}", "flashlight {on}", "switch the torch {on}", "torch {on}", "switch the flashlight {on}",
        "put the torch {on}", "light {on}, please", "flash light {on}", "make the flashlight go {on}", "I want the torch {on}",
    )),
    Function("wifi", {"on": "switch"}, (
        "turn wifi {on}", "wifi {on}", "switch wi-fi {on}", "put the wifi {on}", "wireless {on}", "turn the wireless {on}",
        "I want wifi {on}", "wi-fi {on} please", "set wifi to {on}", "make wifi go {on}",
    )),
    Function("bluetooth", {"on": "switch"}, (
        "turn bluetooth {on}", "bluetooth {on}", "switch bluetooth {on}", "put bluetooth {on}", "set bluetooth to {on}",
        "I want bluetooth {on}", "have bluetooth {on}", "bluetooth {on} please", "make bluetooth go {on}",
        "get bluetooth switched {on}",
    )),
    Function("do_not_disturb", {"minutes": "minutes"}, (
        "do not disturb for {minutes}", "no calls for {minutes}", "silence for {minutes}", "keep it quiet for {minutes}",
        "mute everything for {minutes}", "leave me alone for {minutes}", "hold my notifications for {minutes}",
        "quiet please, {minutes}", "I don't want to be bothered for {minutes}", "peace and quiet for {minutes}",
    )),
    Function("take_note", {"text": "note"}, (
        "note: {text}", "make a note: {text}", "write down {text}", "take a note, {text}", "remember this: {text}",
        "note down {text}", "jot down {text}", "put in my notes {text}", "new note {text}", "keep a note of {text}",
        "save this thought: {text}",
    )),
    Function("add_to_list", {"item": "item"}, (
        "add {item} to my shopping list", "put {item} on the list", "we need {item}", "shopping list: {item}", "buy {item}",
        "I'm out of {item}", "don't let me forget {item} at the store", "add {item} to the groceries", "{item} on the shopping list",
        "we are running low on {item}", "pick up {item} next time",
    )),
    Function("add_event", {"title": "event", "day": "day", "time": "time"}, (
        "schedule {title} on {day} at {time}", "put {title} in my calendar for {day}, {time}", "add {title} {day} at {time}",
        "{title} on {day} at {time}, please add it", "plan {title} for {day} at {time}", "book {title} on {day} {time}",
        "new event: {title}, {day}, {time}", "I have {title} on {day} at {time}", "enter {title} for {day} at {time}",
        "block {day} {time} for {title}", "mark {title} on {day} at {time}",
    )),
    Function("read_calendar", {"day": "day"}, (
        "what do I have on {day}", "show my calendar for {day}", "what's on {day}", "am I busy on {day}", "my plans for {day}",
        "read me my appointments for {day}", "anything on {day}", "calendar {day}", "how does {day} look", "what is planned for {day}",
    )),
    Function("weather", {"place": "place", "day": "day"}, (
        "what's the weather in {place} on {day}", "weather in {place} {day}", "will it rain in {place} on {day}",
        "how warm is it in {place} on {day}", "forecast for {place}, {day}", "do I need an umbrella in {place} on {day}",
        "is it sunny in {place} on {day}", "temperature in {place} {day}", "tell me {day}'s weather in {place}",
        "what will the sky be like over {place} on {day}",
    )),
    Function("search_web", {"query": "query"}, (
        "search for {query}", "look up {query}", "google {query}", "find out about {query}", "search the web for {query}",
        "what does the internet say about {query}", "find {query} online", "I want to read about {query}", "web search {query}",
        "dig up something on {query}",
    )),
    Function("open_app", {"app": "app"}, (
        "open {app}", "start {app}", "launch {app}", "go to {app}", "show me {app}", "bring up {app}", "run {app}",
        "switch to {app}", "I want to use {app}", "fire up {app}", "get {app} going",
    )),
    Function("take_photo", {"camera": "camera"}, (
        "take a photo with the {camera} camera", "{camera} camera photo", "take a picture, {camera} camera", "shoot a picture with the {camera} camera",
        "snap one with the {camera} camera", "use the {camera} camera for a photo", "picture with the {camera} camera please",
        "photo, {camera} camera", "capture this with the {camera} camera", "let the {camera} camera take one",
    )),
)  # fmt: skip

NOTHING = (
    "tell me a joke", "what is the meaning of life", "do you love me", "I am tired", "who won the war", "sing", "you are funny",
    "how old are you", "why is the sky blue", "I had soup today", "what do you think of cats", "my knee hurts", "guess what happened",
    "are you a person", "that was a long day", "explain gravity", "is it wrong to lie", "write a poem about rain", "I miss my dog",
    "what would you do in my place", "how many legs has a spider", "nothing, thanks", "never mind", "you again", "tell me a story",
    "my boss is unfair", "do fish sleep", "I like this song", "what a mess", "who are you", "can you feel pain", "good night then",
)  # fmt: skip
"""What fits no function: the answer is a call of "none"."""
