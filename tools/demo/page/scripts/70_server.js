// Talking to the server. Whatever goes wrong becomes an Error of one sentence.

async function asked(path, body) {
  let response;
  try {
    response = await fetch(path, body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    throw new Error("The server does not answer: is its program still running?");
  }
  let value;
  try {
    value = await response.json();
  } catch {
    throw new Error("The server's answer was cut off.");
  }
  if (!response.ok) throw new Error(value.error ?? "The server refused without a reason.");
  return value;
}

function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(file);
  });
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
