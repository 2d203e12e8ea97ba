// Conversations, stored in this browser only.

const NAME = "meditune.conversations";
const MOST = 50;

export function all() {
  try {
    const found = JSON.parse(localStorage.getItem(NAME) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

export function keep(conversation) {
  const others = all().filter((each) => each.id !== conversation.id);
  write([{ ...conversation, when: Date.now() }, ...others].slice(0, MOST));
}

export function forget(id) {
  write(all().filter((each) => each.id !== id));
}

export function forgetAll() {
  localStorage.removeItem(NAME);
}

// Stores the conversations. If the browser has too little room, the oldest conversations are dropped.
function write(conversations) {
  for (let kept = conversations; ; kept = kept.slice(0, -1)) {
    try {
      localStorage.setItem(NAME, JSON.stringify(kept));
      return;
    } catch {
      if (!kept.length) return;
    }
  }
}
