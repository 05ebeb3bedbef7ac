import io.tus.java.client.ProtocolException;
import io.tus.java.client.TusClient;
import io.tus.java.client.TusExecutor;
import io.tus.java.client.TusURLStore;
import io.tus.java.client.TusUpload;
import io.tus.java.client.TusUploader;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/** tus-java-client: one upload. The case comes on stdin as one line of `key=value`, tab-separated. */
public final class Driver {
    private static final int ATTEMPTS = 80;
    private static final int PAUSE_MS = 150;

    private final Map<String, String> wanted;
    private URL url;

    private Driver(Map<String, String> wanted) {
        this.wanted = wanted;
    }

    public static void main(String[] args) throws IOException {
        var input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        var wanted = new HashMap<String, String>();
        for (String pair : input.readLine().split("\t")) {
            int at = pair.indexOf('=');
            wanted.put(pair.substring(0, at), pair.substring(at + 1));
        }
        var driver = new Driver(wanted);
        String error = null;
        try {
            driver.run();
        } catch (IOException | ProtocolException e) {
            error = e.toString();
        }
        boolean aborted = error == null && wanted.containsKey("stop_at");
        System.out.println("{\"result\": {\"url\": " + quoted(driver.url)
                + ", \"error\": " + quoted(error) + ", \"aborted\": " + aborted + "}}");
    }

    private static String quoted(Object value) {
        if (value == null) {
            return "null";
        }
        return '"' + value.toString().replaceAll("[\"\\\\\\p{Cntrl}]", " ") + '"';
    }

    private void run() throws IOException, ProtocolException {
        var file = new File(wanted.get("file"));
        var client = new TusClient();
        client.setUploadCreationURL(new URL(wanted.get("endpoint")));
        client.enableResuming(new OneUrl(wanted.get("store")));
        var upload = new TusUpload(file);
        var metadata = new HashMap<String, String>();
        wanted.forEach((key, value) -> {
            if (key.startsWith("metadata.")) {
                metadata.put(key.substring("metadata.".length()), value);
            }
        });
        upload.setMetadata(metadata);
        // One request carries this much; a chunk is only what is read at a time.
        int payload = Integer.parseInt(wanted.getOrDefault("chunk_size", "1073741824"));
        long stopAt = Long.parseLong(wanted.getOrDefault("stop_at", "9223372036854775807"));
        var executor = new TusExecutor() {
            @Override
            protected void makeAttempt() throws ProtocolException, IOException {
                TusUploader uploader = client.resumeOrCreateUpload(upload);
                url = uploader.getUploadURL();
                uploader.setChunkSize(64 * 1024);
                uploader.setRequestPayloadSize(payload);
                int sent = 0;
                while (sent > -1 && uploader.getOffset() < stopAt) {
                    sent = uploader.uploadChunk();
                }
                uploader.finish(); // also how it pauses: the request ends here
            }
        };
        var delays = new int[wanted.containsKey("retry") ? ATTEMPTS : 0];
        Arrays.fill(delays, PAUSE_MS);
        executor.setDelays(delays);
        executor.makeAttempts();
    }

    /** One address, kept in memory, and in a file for a later process if one is named. */
    private static final class OneUrl implements TusURLStore {
        private final Path path;
        private URL url;

        OneUrl(String path) throws IOException {
            this.path = path == null ? null : Path.of(path);
            if (this.path != null && Files.exists(this.path)) {
                url = new URL(Files.readString(this.path));
            }
        }

        @Override
        public void set(String fingerprint, URL url) {
            this.url = url;
            if (path != null) {
                try {
                    Files.writeString(path, url.toString());
                } catch (IOException e) {
                    throw new IllegalStateException(e);
                }
            }
        }

        @Override
        public URL get(String fingerprint) {
            return url;
        }

        @Override
        public void remove(String fingerprint) {
            url = null;
        }
    }
}
