/** What was dropped on the page, as files: folders are gone through. */

/** More is no course any more, and a dropped disk would be gone through for hours. */
const MOST = 2000;

/** @param {DataTransfer} transfer @returns {Promise<File[]>} */
export async function dropped(transfer) {
  // Both lists are emptied as soon as the event is over.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.());
  const files = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return files;
  const found = [];
  for (const entry of entries) if (entry) await gather(entry, found);
  return found;
}

async function gather(entry, found) {
  if (found.length >= MOST || entry.name.startsWith('.')) return;
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file) found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A folder is read in parts; the last one is empty.
    const part = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!part.length) return;
    for (const inside of part) await gather(inside, found);
  }
}
