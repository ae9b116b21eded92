// Starts Swagger UI on the description of this server's API.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null, // no description is sent anywhere
});
