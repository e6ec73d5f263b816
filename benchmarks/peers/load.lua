-- wrk's script: URL -- PATH KEY FILE. FILE has a request's body on each line.
local headers = {["Content-Type"] = "application/json"}
local bodies, path, number = {}, nil, nil

function init(arguments)
  path = arguments[1]
  headers["Authorization"] = "Bearer " .. arguments[2]
  for line in io.lines(arguments[3]) do bodies[#bodies + 1] = line end
  number = math.random(#bodies)
end

function request()
  number = number % #bodies + 1
  return wrk.format("POST", path, headers, bodies[number])
end

function done(summary, latency)
  local e = summary.errors
  local wrong = e.status + e.connect + e.read + e.write + e.timeout
  local p50, p95, p99 = latency:percentile(50), latency:percentile(95), latency:percentile(99)
  print(string.format("found %d %d %d %d %d %d", summary.requests, summary.duration, p50, p95, p99, wrong))
end
