// Conversations, kept in this browser and nowhere else.

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

// Where there is no room (or the browser keeps nothing), the oldest go first.
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
