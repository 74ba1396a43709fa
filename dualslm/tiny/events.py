"""What people tell in the tiny world (ours): event families, facts about themselves, small talk.

A family is one kind of event in two or three phrasings, with a valence and the sentence by which a good
listener answers the words. A fact also has a sentence that uses it some turns later. Names in braces are lists of
`lexicon.SLOTS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Valence: TypeAlias = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Family:
    """One kind of thing to say.

    Attributes:
        name: short unique name.
        kind: an event, a fact about the speaker, or small talk.
        valence: whether it is good or bad for the speaker.
        phrasings: the ways of saying it.
        content: the listener's answer to its words.
        memory: the listener's sentence that uses it some turns later; None where the family is no fact.
    """

    name: str
    kind: Literal["event", "fact", "small"]
    valence: Valence
    phrasings: tuple[str, ...]
    content: str
    memory: str | None = None


def slots_of(text: str) -> tuple[str, ...]:
    """The names in braces, in order."""
    return tuple(re.findall(r"{(\w+)}", text))


# One family on a line: name | valence | phrasing | phrasing ... > answer to the words [> answer from memory].
# Every phrasing has all slots of both answers, so that what is answered was always said (a test checks it).
_EVENTS = """
lost | bad | I lost my {thing} at the {place} {past}. | My {thing} is gone, I left it at the {place}. | I cannot find my {thing}, it must be at the {place}. > I hope your {thing} turns up at the {place}.
found | good | I found my old {thing} in the {room} {past}. | My {thing} was in the {room} all the time. > It is lovely that your {thing} was in the {room}.
broke | bad | The {machine} in the {room} broke {past}. | The {machine} in our {room} does not work any more. > I hope somebody can repair the {machine} in the {room} soon.
repaired | good | My {person} repaired the {machine} for me {past}. | The {machine} works again, my {person} repaired it. > It was kind of your {person} to repair the {machine}.
failed | bad | I failed my {subject} exam {past}. | I did not pass the {subject} exam {past}. > You can take the {subject} exam again.
passed | good | I passed my {subject} exam {past}. | My {subject} exam went very well {past}. > All that work for the {subject} exam was worth it.
exam | plain | I have a big {subject} exam {future}. | My {subject} exam is {future}. > Good luck with the {subject} exam {future}.
hired | good | I got a job at the {place} in {town}. | The {place} in {town} gave me a job {past}. > The {place} in {town} is lucky to have you.
fired | bad | I lost my job at the {place} {past}. | The {place} told me {past} that I must leave. > The {place} will miss you, and something better will come.
career | good | My {person} found work as a {job}. | My {person} is a {job} now. > Your {person} will make a wonderful {job}.
trip | good | We are going to {town} {future}. | I am flying to {town} {future}. > Have a wonderful time in {town} {future}.
cancelled | bad | My {person} cancelled our trip to {town}. | I cannot go to {town} with my {person} any more. > You and your {person} will see {town} another time.
delay | bad | My {vehicle} to {town} was two hours late. | I waited two hours for the {vehicle} to {town}. > Two hours is a long wait for a {vehicle} to {town}.
missed | bad | I missed the {vehicle} to the {place} {past}. | The {vehicle} to the {place} left without me. > There will be another {vehicle} to the {place}.
spoiled | bad | The {weather} spoiled our {occasion} {past}. | Our {occasion} {past} was spoiled by the {weather}. > What a pity that the {weather} spoiled the {occasion}.
sunshine | good | We had bright sunshine for the {occasion} {past}. | The sun came out for our {occasion} {past}. > Sunshine is the best guest at a {occasion}.
cooked | good | I cooked {food} for my {person} {past}. | I made {food} for my {person} and everybody liked it. > Your {person} must have loved the {food}.
burned | bad | I burned the {food} for my {person} {past}. | I wanted to make {food} for my {person} but I burned it. > Your {person} will forgive you for the {food}.
lunch | plain | We had {food} for lunch at the {place}. | I ate some {food} at the {place} {past}. > I would like to try the {food} at the {place} too.
ill | bad | I had a bad {illness} {past}. | I stayed in bed with a {illness} {past}. > Please rest until the {illness} is gone.
illness | bad | My {person} has a bad {illness}. | My {person} is in bed with a {illness}. > I hope your {person} gets over the {illness} soon.
injury | bad | My {person} has a broken {body}. | My {person} fell {past} and broke a {body}. > A broken {body} takes time, so be patient with your {person}.
recovery | good | My {person} is well again after the {illness}. | The {illness} is over and my {person} feels fine. > What a relief that your {person} is over the {illness}.
visit | good | My {person} is coming to see us {future}. | My {person} will visit me {future}. > You and your {person} will have a lovely time {future}.
leaving | bad | My {person} is moving to {town} {future}. | My {person} will live far away in {town}. > You can visit your {person} in {town}.
flat | plain | We have a new flat near the {place} in {town}. | I rented a small flat in {town} near the {place}. > A flat near the {place} in {town} is a good start.
noise | bad | The people next door play the {instrument} every {often}. | Somebody upstairs plays the {instrument} every {often}. > Nobody wants to hear a {instrument} every {often}.
gift | good | My {person} gave me a new {thing} {past}. | I got a new {thing} from my {person}. > Your {person} chose well, enjoy the new {thing}.
present | plain | I want to buy a new {thing} for my {person}. | My {person} needs a new {thing} from me. > Your {person} will be glad of a new {thing}.
stolen | bad | Somebody stole my {thing} at the {place} {past}. | A thief at the {place} took my {thing}. > Tell the police at the {place} about your {thing}.
won | good | We won the {sport} match against {town} {past}. | Our team beat {town} at {sport} {past}. > You can be proud of beating {town} at {sport}.
defeat | bad | We lost the {sport} match against {town} {past}. | The team from {town} beat us at {sport}. > Next time you will beat {town} at {sport}.
film | plain | I saw a film about a {animal} with my {person}. | My {person} took me to a film about a {animal}. > A film about a {animal} suits you and your {person}.
book | plain | I am reading a book about a {job} in {town}. | My new book is about a {job} in {town}. > Tell me how it ends for the {job} in {town}.
haircut | bad | My {person} cut my hair {past} and it looks terrible. | My hair looks terrible since my {person} cut it. > Hair grows back, so be gentle with your {person}.
hair | plain | I dyed my hair {colour} {past}. | My hair is {colour} now, I dyed it {past}. > I would love to see your {colour} hair.
runaway | bad | Our {animal} ran away near the {place} {past}. | We lost our {animal} when we were at the {place}. > I hope your {animal} finds the way home from the {place}.
newpet | good | My {person} brought home a {animal} {past}. | We have a little {animal} now, thanks to my {person}. > The {animal} will love you and your {person}.
garden | good | My {person} planted {plants} behind the house {past}. | The {plants} of my {person} grow behind the house. > The {plants} will make you and your {person} smile.
eaten | bad | The {animal} ate all my {plants} {past}. | My {plants} are gone, the {animal} ate them. > That {animal} should leave your {plants} alone.
prize | good | I won a trip to {town} at the {occasion}. | At the {occasion} {past} I won a trip to {town}. > The {occasion} brought you luck, so enjoy {town}.
argument | bad | My {person} and I had a fight about the {furniture}. | My {person} shouted at me because of the {furniture}. > You and your {person} can talk about the {furniture} tomorrow.
peace | good | My {person} said sorry for the {occasion} {past}. | I am friends with my {person} again after the {occasion}. > You and your {person} can laugh about the {occasion} now.
forgot | bad | I forgot the {occasion} with my {person} {past}. | My {person} waited, but I forgot our {occasion}. > Call your {person} and explain about the {occasion}.
invited | good | My {person} invited me to a {occasion} {future}. | I can go to the {occasion} with my {person}. > Have fun with your {person} at the {occasion}.
leftout | bad | Nobody invited me to the {occasion} at the {place}. | They had a {occasion} at the {place} without me. > They missed you at the {place}, the {occasion} was not complete.
lessons | plain | I am learning the {instrument} with my {person}. | My {person} teaches me to play the {instrument}. > Soon you and your {person} can play the {instrument} together.
decorating | plain | I put the {furniture} in the {room} {past}. | We moved the old {furniture} into the {room}. > The {furniture} must look nice in the {room}.
spilled | bad | I spilled {drink} on the {furniture} {past}. | There is {drink} all over the {furniture}. > Cold water gets the {drink} off the {furniture}.
window | bad | The {rough} came in through the {room} window. | The {room} window let the {rough} in {past}. > I hope the {room} is fine after the {rough}.
expensive | bad | I paid too much for the {thing} at the {place}. | My {thing} from the {place} cost far too much. > Maybe the {place} will take the {thing} back.
bargain | good | The {thing} at the {place} was half price. | I paid half price at the {place} for my {thing}. > Half price for the {thing}, I should visit the {place} too.
astray | bad | I got lost on the way to the {place} in {town}. | I could not find the {place} in {town}. > Next time somebody will show you the {place} in {town}.
married | good | My {person} is getting married in {town} {future}. | My {person} wants to marry in {town}. > Please give your {person} my best wishes for {town}.
baby | good | My {person} had a baby {past}. | The baby of my {person} was born {past}. > Please kiss the baby and your {person} for me.
sleepless | bad | I could not sleep {past} because of the {rough}. | The {rough} kept me awake {past}. > I hope the {rough} lets you sleep tonight.
shopping | plain | I bought {food} and {drink} at the market. | We need some {food} and {drink} for the weekend. > I like {food} with {drink} very much.
"""

_FACTS = """
name | plain | My name is {name}. | Hello, I am {name}. | You can call me {name}. > Nice to meet you, {name}. > Take care, {name}.
pet | good | I have a {animal} called {pet}. | My {animal} is called {pet}. > That is a lovely name for a {animal}. > Give {pet} a hug from me.
home | plain | I live in {town}. | My home is in {town}. | I grew up in {town} and I still live there. > I have heard good things about {town}. > Greetings to everybody in {town}.
favourite | good | My favourite food is {food}. | I could eat {food} every day. > I can understand why you like {food}. > Treat yourself to some {food} tonight.
drinking | good | My favourite drink is {drink}. | I always drink {drink} in the morning. > A cup of {drink} is always nice. > Have a cup of {drink} now.
plan | plain | I am going to the {place} {future}. | My plan is to visit the {place} {future}. > That is a nice plan for {future}. > Enjoy the {place} {future}.
hobby | good | I love {hobby} very much. | In my free time I enjoy {hobby}. > You must be good at {hobby}. > A little {hobby} will do you good.
music | good | I play the {instrument} in a band. | I play the {instrument} at home. > I would love to hear your {instrument}. > Play something nice on the {instrument}.
work | plain | I work as a {job}. | I am a {job} in {town}. > It must be interesting to be a {job}. > They need a {job} like you.
colour | good | My favourite colour is {colour}. | I only wear {colour} clothes. > You must look good in {colour}. > Wear something {colour} today.
family | plain | I live with my {person}. | I share a house with my {person}. > You are not alone with your {person} there. > Say hello to your {person} for me.
birthday | plain | My birthday is in {month}. | I was born in {month}. > I will remember that it is in {month}. > I will think of you in {month}.
"""

_SMALL_TALK = """
hello | plain | Hello. | Hello there. | Good morning. > Hello, it is good to hear you.
how | plain | How are you? | Are you well? > I am very well, thank you.
time | plain | Can we talk for a moment? | Do you have some time for me? > Of course, I have all the time you need.
day | plain | It was a long day. | What a long day. > Then it is good that you sit down now.
thanks | plain | Thank you for the other day. | You helped me so much {past}. > You are always welcome.
coming | plain | I just came from the {place}. | I was at the {place} {past}. > I hope it was nice there.
sitting | plain | I am sitting in the {room}. | I am alone in the {room} now. > Make yourself comfortable.
warm | plain | It is warm in {town} today. | It was cold in {town} {past}. > We all like to talk about the weather.
drink | plain | I am having some {drink}. | There is {drink} on the table. > That sounds cosy.
busy | plain | I was busy with the {furniture} {past}. | I cleaned the {room} {past}. > You always have something to do.
"""


def _read(table: str, kind: Literal["event", "fact", "small"]) -> tuple[Family, ...]:
    families = []
    for line in table.strip().splitlines():
        statement, content, *memory = (part.strip() for part in line.split(" > "))
        name, valence, *phrasings = (part.strip() for part in statement.split(" | "))
        assert phrasings, line
        assert valence in get_args(Valence), line
        recalled = memory[0] if memory else None
        families.append(Family(name, kind, valence, tuple(phrasings), content, recalled))  # type: ignore[arg-type]
    return tuple(families)


EVENTS = _read(_EVENTS, "event")
FACTS = _read(_FACTS, "fact")
SMALL_TALK = _read(_SMALL_TALK, "small")
