// Echo on ws, with bufferutil beside it as its README advises: node ws_echo.js PORT
"use strict";

const { WebSocketServer } = require("ws");

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  maxPayload: 16 * 1024 * 1024,
  perMessageDeflate: process.env.BENCHMARK_DEFLATE === "1",
});

server.on("connection", (session) => {
  session.on("error", () => {});
  session.on("message", (message, isBinary) => session.send(message, { binary: isBinary }));
});
