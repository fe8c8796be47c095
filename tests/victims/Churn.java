import java.util.Random;

/**
 * A saturated Java heap: most of it is live, the rest is garbage as fast as four threads can make
 * it, so that the collector never rests. Every array knows what it must contain. At each line on
 * standard input it prints how many arrays were replaced, and how many were wrong.
 */
public class Churn {
    static final int LENGTH = 4096;
    static volatile long replaced, wrong;

    static long[] filled(long seed) {
        long[] array = new long[LENGTH];
        for (int i = 0; i < LENGTH; i++)
            array[i] = seed * 31 + i;
        return array;
    }

    static boolean good(long[] array) {
        long seed = array[0] / 31;
        for (int i = 0; i < LENGTH; i++)
            if (array[i] != seed * 31 + i)
                return false;
        return true;
    }

    static void churn(long[][] live, Random chance) {
        for (long round = 0;; round++) {
            int at = chance.nextInt(live.length);
            boolean fine = good(live[at]);
            live[at] = filled(round);
            synchronized (Churn.class) {
                replaced++;
                if (!fine)
                    wrong++;
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        int each = (int) (Runtime.getRuntime().maxMemory() * 7 / 10 / 4 / (LENGTH * 8));
        for (int number = 0; number < 4; number++) {
            long[][] live = new long[each][];
            for (int i = 0; i < each; i++)
                live[i] = filled(i);
            Random chance = new Random(number);
            Thread thread = new Thread(() -> churn(live, chance), "churn-" + number);
            thread.setDaemon(true);
            thread.start();
        }
        System.out.println("ready");
        while (System.in.read() >= 0)
            System.out.println(replaced + " " + wrong);
    }
}
