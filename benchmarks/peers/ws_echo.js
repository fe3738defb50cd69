// Echo, and a publisher to all, on ws, with bufferutil beside it as its README advises: node ws_echo.js PORT
"use strict";

const fs = require("fs");
const http = require("http");
const https = require("https");
const { WebSocketServer } = require("ws");

const tls = process.env.BENCHMARK_TLS;
const listener = tls
  ? https.createServer({ cert: fs.readFileSync(`${tls}/cert.pem`), key: fs.readFileSync(`${tls}/key.pem`) })
  : http.createServer();

const server = new WebSocketServer({
  server: listener,
  maxPayload: 16 * 1024 * 1024,
  perMessageDeflate: process.env.BENCHMARK_DEFLATE === "1",
});
const subscribers = new Set();

server.on("connection", (session, request) => {
  session.on("error", () => {});
  if (request.url === "/publish") {
    subscribers.add(session);
    session.on("close", () => subscribers.delete(session));
    session.on("message", (message, isBinary) => {
      for (const subscriber of subscribers) subscriber.send(message, { binary: isBinary });
    });
  } else {
    session.on("message", (message, isBinary) => session.send(message, { binary: isBinary }));
  }
});

listener.listen(Number(process.argv[2]), "127.0.0.1");
