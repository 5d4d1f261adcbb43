"""Python client of both doors: sessions by REST, conversation over either dialect."""

from gpuserver.client.conversation import Conversation, MessagesMissing, converse
from gpuserver.client.live_conversation import Backoff, LiveConversation, SessionOver
from gpuserver.client.management import Management, Ticket
from gpuserver.client.microphone import Microphone
from gpuserver.client.playback import Playback

__all__ = [
    "Backoff",
    "Conversation",
    "LiveConversation",
    "Management",
    "MessagesMissing",
    "Microphone",
    "Playback",
    "SessionOver",
    "Ticket",
    "converse",
]
