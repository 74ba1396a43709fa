// The conversation outlives a reload: it is kept in this browser, recordings and all, until it is cleared.

const NAME = "dualslm";

function open() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore("talk");
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

async function act(mode, work) {
  try {
    const base = await open();
    return await new Promise((resolve, reject) => {
      const asked = work(base.transaction("talk", mode).objectStore("talk"));
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    }).finally(() => base.close());
  } catch {
    return undefined; // a private window may forbid it: the conversation then ends with its tab
  }
}

export const save = (talk) => act("readwrite", (store) => store.put(talk, "now"));
export const load = () => act("readonly", (store) => store.get("now"));
export const clear = () => act("readwrite", (store) => store.delete("now"));

/** A setting of this browser's: whether replies are spoken, and by which voice. */
export const setting = {
  get(name, otherwise) {
    try { return localStorage.getItem(`${NAME}.${name}`) ?? otherwise; } catch { return otherwise; }
  },
  set(name, value) {
    try { localStorage.setItem(`${NAME}.${name}`, value); } catch { /* private windows */ }
  },
};
