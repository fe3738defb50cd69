// One WebSocket, driven by commands of tests/test_clients.py: in Node.js as lines of JSON on standard input, answered by
// lines on standard output; in a browser by calls of run().
"use strict";

let socket;
let received;
let waiting;
let ended;

const commands = {
  open({ url, protocols, compress }) {
    // The browser's own takes no options, ws's does.
    socket = globalThis.process ? new WebSocket(url, protocols, { perMessageDeflate: compress }) : new WebSocket(url, protocols);
    socket.binaryType = "arraybuffer";
    received = [];
    socket.onmessage = ({ data }) => {
      received.push(data);
      waiting?.();
    };
    ended = new Promise((resolve) => {
      socket.onclose = ({ code, reason }) => {
        resolve([code, reason]);
        waiting?.();
      };
    });
    return new Promise((resolve, reject) => {
      socket.onopen = () => resolve([socket.protocol || null, socket.extensions]);
      socket.onerror = ({ message }) => reject(new Error(message || "the connection failed"));
    });
  },

  send({ message }) {
    socket.send("text" in message ? message.text : Uint8Array.from(atob(message.binary), (char) => char.charCodeAt(0)));
  },

  async receive() {
    while (!received.length) {
      if (socket.readyState > WebSocket.OPEN) {
        throw new Error("closed");
      }
      await new Promise((resolve) => (waiting = resolve));
    }
    const data = received.shift();
    if (typeof data === "string") {
      return { text: data };
    }
    let binary = "";
    for (const byte of new Uint8Array(data)) {
      binary += String.fromCharCode(byte);
    }
    return { binary: btoa(binary) };
  },

  ping() {
    return new Promise((resolve) => {
      socket.once("pong", (payload) => resolve(payload.toString()));
      socket.ping("are you there?");
    });
  },

  close({ code, reason }) {
    socket.close(code, reason);
    return ended;
  },

  closed() {
    return ended;
  },
};

async function run(command) {
  try {
    return { result: await commands[command.command](command) };
  } catch (error) {
    return { error: String(error) };
  }
}

if (globalThis.process) {
  globalThis.WebSocket = require("ws");
  (async () => {
    for await (const line of require("node:readline").createInterface({ input: process.stdin })) {
      console.log(JSON.stringify((await run(JSON.parse(line))) ?? null));
    }
    process.exit();
  })();
}
