// A client of both tokenizer protocols that uses cpp-httplib with timeouts of one second, like ax-llm's host program:
//   client URL CLIENTS SECONDS < questions
// Each client asks the questions, one per line of stdin, in a loop: first with the simple protocol, then in a conversation.
// Prints {"requests", "failures", "unequal", "milliseconds": [p50, p99, max], "answers": {question: [ids, text]}}.
#include <httplib.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

using nlohmann::json;
using Clock = std::chrono::steady_clock;

struct Tally {
    std::mutex lock;
    std::vector<double> milliseconds;
    std::map<std::string, json> answers;
    int failures = 0, unequal = 0;
};

class Client {
   public:
    Client(const std::string &url, Tally &tally) : http_(url), tally_(tally) {
        http_.set_connection_timeout(1);
        http_.set_read_timeout(1);
        http_.set_write_timeout(1);
    }

    void ask(const std::string &question) {
        const json simple = post("/encode", {{"text", question}, {"img_prompt", false}})["token_ids"];
        const json text = post("/decode", {{"token_ids", simple}})["text"];
        const std::string uid = get("/get_uid")["uid"];
        get("/bos_id?uid=" + uid).at("bos_id").get<int>();
        get("/eos_id?uid=" + uid).at("eos_id").get<int>();
        post("/reset", {{"uid", uid}});
        json body = {{"uid", uid}, {"text", question}, {"img_prompt", false}};
        const json first = post("/encode", body);
        std::string reply;
        const std::vector<int> ids = first["token_ids"];
        for (size_t at = 0; at < ids.size(); at += 3) {
            const std::vector<int> some(ids.begin() + at, ids.begin() + std::min(at + 3, ids.size()));
            reply += post("/decode", {{"uid", uid}, {"token_ids", some}})["text"].get<std::string>();
        }
        body["last_reply"] = question;
        const json second = post("/encode", body);
        record(question, {simple, text, first["token_ids"], reply, second["token_ids"], second["diff"]});
    }

   private:
    json get(const std::string &path) {
        return timed([&] { return http_.Get(path.c_str()); });
    }

    json post(const std::string &path, const json &body) {
        return timed([&] { return http_.Post(path.c_str(), body.dump(), "application/json"); });
    }

    template <class Send>
    json timed(Send send) {
        const auto begin = Clock::now();
        auto result = send();
        const double took = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
        if (!result) throw std::runtime_error(httplib::to_string(result.error()));
        if (result->status != 200) throw std::runtime_error(result->body);
        std::lock_guard<std::mutex> guard(tally_.lock);
        tally_.milliseconds.push_back(took);
        return json::parse(result->body);
    }

    void record(const std::string &question, const json &answer) {
        std::lock_guard<std::mutex> guard(tally_.lock);
        if (tally_.answers.emplace(question, answer).first->second != answer) ++tally_.unequal;
    }

    httplib::Client http_;
    Tally &tally_;
};

int main(int, char **argv) {
    const auto end = Clock::now() + std::chrono::seconds(std::stoi(argv[3]));
    std::vector<std::string> questions;
    for (std::string line; std::getline(std::cin, line);) questions.push_back(line);
    Tally tally;
    std::vector<std::thread> threads;
    for (int number = 0; number < std::stoi(argv[2]); ++number)
        threads.emplace_back([&, number] {
            Client client(argv[1], tally);
            for (size_t turn = number; Clock::now() < end; ++turn) try {
                    client.ask(questions[turn % questions.size()]);
                } catch (const std::exception &error) {
                    std::lock_guard<std::mutex> guard(tally.lock);
                    ++tally.failures;
                    std::cerr << error.what() << '\n';
                }
        });
    for (auto &thread : threads) thread.join();
    auto &took = tally.milliseconds;
    std::sort(took.begin(), took.end());
    const auto at = [&](double share) { return took.empty() ? -1 : took[size_t(share * (took.size() - 1))]; };
    std::cout << json{{"requests", took.size()},
                      {"failures", tally.failures},
                      {"unequal", tally.unequal},
                      {"milliseconds", {at(0.5), at(0.99), at(1)}},
                      {"answers", tally.answers}}
              << '\n';
}
